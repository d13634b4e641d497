"""Segmentors outside of a Runner."""

import copy

import pytest
import torch
from mmengine.config import Config

import snella_seg.register  # noqa: F401
from snella_seg.loading import CheckpointError
from snella_seg.models import build_segmentor, logits


@pytest.fixture
def built(tiny_config_file, tmp_path):
    """A config, a whole checkpoint of it, and the segmentor that was built from both."""
    cfg = Config.fromfile(tiny_config_file)
    torch.manual_seed(0)
    state = build_segmentor(cfg).state_dict()
    torch.save({"state_dict": state}, tmp_path / "whole.pth")
    return cfg, tmp_path / "whole.pth", build_segmentor(cfg, str(tmp_path / "whole.pth"))


def test_a_built_segmentor_is_copied_and_saved_whole(built, tmp_path):
    _, _, model = built
    torch.save(model, tmp_path / "model.pth")
    expected = logits(model, size=64)
    for twin in (copy.deepcopy(model), torch.load(tmp_path / "model.pth", weights_only=False)):
        assert torch.equal(logits(twin, size=64), expected)
        state = twin.state_dict()
        state["decode_head.conv_seg.weight"] = torch.zeros(7, 16, 1, 1)
        with pytest.raises(CheckpointError, match="does not fit this model: decode_head.conv_seg"):
            twin.load_state_dict(state)

"""Segmentors outside of a Runner."""

import copy

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

import snella_seg.register  # noqa: F401
from snella_seg.loading import CheckpointError
from snella_seg.models import build_segmentor, logits
from snella_seg.models.bands import input_bands
from snella_seg.models.inference import segment


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


def test_noise_goes_through_a_preprocessor_that_pads(tiny_config_file):
    cfg = Config.fromfile(tiny_config_file)
    cfg.model.data_preprocessor.test_cfg = dict(size_divisor=16)
    assert logits(build_segmentor(cfg), size=60).shape[-2:] == (16, 16)  # of 64, by a stride of 4


def test_noise_has_as_many_bands_as_the_images(tiny_config_file):
    cfg = Config.fromfile(tiny_config_file)
    cfg.model.backbone.backbone.in_channels = 5
    cfg.model.data_preprocessor.update(mean=[127.5], std=[127.5], bgr_to_rgb=False)
    model = build_segmentor(cfg)
    assert input_bands(model.backbone) == 5 and logits(model, size=64).isfinite().all()


def test_a_single_logit_is_painted_as_two_classes(tiny_config_file, tmp_path):
    cfg = Config.fromfile(tiny_config_file)
    cfg.model.decode_head.update(num_classes=2, out_channels=1, threshold=0.5)
    cfg.model.auxiliary_head.update(num_classes=2, out_channels=1, threshold=0.5)
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), picture)
    classes = segment(build_segmentor(cfg), str(tmp_path / "image.png"))
    assert classes.dtype == np.int64 and set(np.unique(classes)) <= {0, 1}

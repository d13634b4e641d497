"""The proving grounds load, build and say what their names say."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS, TRANSFORMS

import snella_seg.register  # noqa: F401
from snella_seg.inject import list_adapters

GROUNDS = Path(__file__).resolve().parents[1] / "configs" / "grounds"
SHIFTS = {"camvid_night.py": "Night", "camvid_fog.py": "Fog", "camvid_thermal.py": "Thermal"}
BLOCKS = {"camvid_day_twelve.py": 12, "camvid_day_four.py": 12}


@pytest.fixture(scope="module", params=sorted(path.name for path in GROUNDS.glob("*.py")))
def ground(request) -> tuple[str, Config]:
    return request.param, Config.fromfile(GROUNDS / request.param)


def test_the_model_is_a_linear_head_on_an_adapted_backbone(ground):
    name, cfg = ground
    init_default_scope("mmseg")
    model = MODELS.build(cfg.model)
    blocks, width = (2, int(name[7:-3])) if "scenes" in name else (BLOCKS.get(name, 6), 192)
    assert len(list_adapters(model)) == 6 * blocks
    maps = 4 if name == "camvid_day_four.py" else 1
    assert model.decode_head.conv_seg.in_channels == width * maps
    assert len(model.backbone.backbone.layers) == blocks


def test_shifts_come_right_after_reading_in_training_and_test(ground):
    name, cfg = ground
    init_default_scope("mmseg")
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        steps = [step.type for step in loader.dataset.pipeline]
        assert steps[0] == "LoadImageFromFile" and all(TRANSFORMS.get(step) for step in steps)
        assert (steps[1] == SHIFTS.get(name)) == (name in SHIFTS)


def test_few_images_are_spread():
    indices = Config.fromfile(GROUNDS / "camvid_few.py").train_dataloader.dataset.indices
    assert len(set(indices)) == 24 and indices[0] == 0 and indices[-1] >= 350

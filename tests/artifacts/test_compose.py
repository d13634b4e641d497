"""Overlap of two tasks, and their sum."""

import pytest
import torch
from mmengine.config import Config
from tasks import save_base, scores

from snella_seg.artifacts import (
    adapter_overlap,
    combine_adapters,
    make_delta,
    merged_backbone,
    read_adapter,
    save_adapter,
)
from snella_seg.inject import list_adapters
from snella_seg.loading import CheckpointError
from snella_seg.models import build_segmentor


@pytest.fixture
def two(build, tmp_path):
    """Adapter files of two tasks, and their models."""
    models = [build(0), build(1, targets=["q", "fc1"])]
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for model, path in zip(models, paths, strict=True):
        save_adapter(model, path)
    return [read_adapter(path) for path in paths], models


def deltas(model) -> dict:
    adapters = list_adapters(model.backbone.backbone)
    return {name: adapter.delta_weight().detach() for name, adapter in adapters.items()}


def test_overlap_counts_common_positions(two):
    files, models = two
    first, second = map(deltas, models)
    counts = adapter_overlap(*files)
    assert list(counts) == list(first)
    for name, (both, either) in counts.items():
        mine = first[name] != 0
        its = second[name] != 0 if name in second else torch.zeros_like(mine)
        assert (both, either) == (int((mine & its).sum()), int((mine | its).sum()))
        assert (both > 0) == (name in second)
    same = adapter_overlap(files[0], files[0])
    assert all(both == either > 0 for both, either in same.values())


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 0.5), (1.0, -0.3)])
def test_combined_weights_are_base_plus_weighted_deltas(two, build, weights):
    files, models = two
    base = build(None, targets=[], trainable=[]).backbone
    before = {k: v.clone() for k, v in base.backbone.state_dict().items()}
    state = combine_adapters(base, files, weights)
    merged = [merged_backbone(model.backbone) for model in models]
    for name, value in state.items():
        expected = before[name] + sum(
            weight * (task[name] - before[name])
            for weight, task in zip(weights, merged, strict=True)
        )
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert make_delta(before, state).num_changed > make_delta(before, merged[0]).num_changed
    assert all(torch.equal(v, before[k]) for k, v in base.backbone.state_dict().items())


def test_other_bases_and_shapes_are_refused(two, build, config, tmp_path):
    files, _ = two
    other = str(save_base(config, tmp_path / "other.pth", seed=2))
    foreign = build(None, targets=[], trainable=[], base_checkpoint=other).backbone
    with pytest.raises(CheckpointError, match="trained on another base"):
        combine_adapters(foreign, files, (1, 1))
    with pytest.raises(ValueError, match="2 files need as many weights, got 1"):
        combine_adapters(foreign, files, (1,))


def test_the_tool_shows_and_merges(tool, two, tmp_path):
    files, _ = two
    out = tmp_path / "both"
    done = tool("compose_adapters", files[0].path, files[1].path, "--out", out, "--weights", 1, 1)
    assert done.code == 0, done.err
    total = [sum(column) for column in zip(*adapter_overlap(*files).values(), strict=True)]
    last = next(line for line in done.out.splitlines() if line.startswith("all "))
    assert last.split()[1:3] == [f"{count:,}" for count in total]
    assert "nella" not in (out / "merged.py").read_text()
    model = build_segmentor(Config.fromfile(out / "merged.py"), str(out / "merged.pth"))
    assert type(model.backbone).__name__ == "VisionTransformer"
    head = files[0].tensors["decode_head.conv_seg.weight"]
    assert torch.equal(model.decode_head.conv_seg.weight, head)


def test_linear_heads_are_written_as_stock_ones(tool, build, config, image, tmp_path):
    for head in ("decode_head", "auxiliary_head"):
        config.model[head] = dict(
            type="LinearHead", in_channels=32, in_index=1, num_classes=4, align_corners=False
        )
    config.model.pop("neck")
    model = build(0)
    model.decode_head.norm.running_mean.normal_()
    task, out = tmp_path / "linear.safetensors", tmp_path / "both"
    save_adapter(model, task)
    done = tool("compose_adapters", task, task, "--out", out)  # the mean of a task and itself
    assert done.code == 0, done.err
    merged = build_segmentor(Config.fromfile(out / "merged.py"), str(out / "merged.pth"))
    assert type(merged.decode_head).__name__ == "FCNHead"
    torch.testing.assert_close(scores(merged, image), scores(model, image), rtol=1e-4, atol=1e-4)

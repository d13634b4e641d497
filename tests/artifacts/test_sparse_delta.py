"""Sparse deltas: exact both ways, compact, and for one base only."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snella_seg.artifacts import (
    apply_delta,
    load_delta,
    make_delta,
    merged_backbone,
    remove_delta,
    save_delta,
)
from snella_seg.artifacts.positions import decode_positions, encode_positions, lower_bound
from snella_seg.artifacts.sparse_delta import position_bytes
from snella_seg.loading import CheckpointError


def same_bits(found: dict, expected: dict) -> bool:
    def bits(value):
        return value.contiguous().view(-1).view(torch.uint8) if value.ndim else value

    return list(found) == list(expected) and all(
        torch.equal(bits(found[k]), bits(expected[k])) for k in expected
    )


@pytest.fixture
def states(build):
    """The stock backbone's state before and after."""
    wrapper = build(None).backbone
    base = {k: v.clone() for k, v in wrapper.backbone.state_dict().items() if "adapters" not in k}
    return base, merged_backbone(build(0).backbone)


def test_exact_both_ways(states, tmp_path):
    base, merged = states
    assert not same_bits(base, merged)
    save_delta(make_delta(base, merged), tmp_path / "delta.safetensors", source="base.pth")
    delta, info = load_delta(tmp_path / "delta.safetensors")
    assert info["source"] == "base.pth"
    there = apply_delta(base, delta)
    assert same_bits(there, merged)
    assert same_bits(remove_delta(there, delta), base)


def test_only_changed_weights_are_in_it(states, build):
    base, merged = states
    delta = make_delta(base, merged)
    changed = {k: int((base[k] != merged[k]).sum()) for k in base}
    assert delta.num_changed == sum(changed.values())
    assert set(delta.positions) == {k for k, n in changed.items() if n}
    assert "cls_token" in delta.positions and "pos_embed" not in delta.positions


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_bit_pattern_returns(dtype):
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(7, 33, generator=generator).to(dtype)}
    base["w"][0, :3] = torch.tensor([-0.0, 0.0, 1e-40]).to(dtype)
    merged = {"w": torch.where(torch.rand(7, 33, generator=generator) < 0.3, -1.7, base["w"])}
    delta = make_delta(base, merged)
    assert same_bits(remove_delta(apply_delta(base, delta), delta), base)


def test_other_weights_are_refused(states):
    base, merged = states
    delta = make_delta(base, merged)
    with pytest.raises(CheckpointError, match="not the base of this delta: other values in"):
        apply_delta(merged, delta)
    with pytest.raises(CheckpointError, match="not the base with this delta"):
        remove_delta(base, delta)
    short = {k: v for k, v in base.items() if k != "cls_token"}
    with pytest.raises(CheckpointError, match="it lacks cls_token"):
        apply_delta(short, delta)
    with pytest.raises(ValueError, match="differ in names, shapes or dtypes: cls_token"):
        make_delta(short, merged)
    double = {k: v.double() for k, v in base.items()}
    with pytest.raises(CheckpointError, match="other values|float64"):
        apply_delta(double, delta)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_positions_return(data):
    size = data.draw(st.integers(1, 3000))
    some = data.draw(st.sets(st.integers(0, size - 1), max_size=size))
    positions = np.array(sorted(some), np.int64)
    way, words = encode_positions(positions, size)
    assert np.array_equal(decode_positions(way, words, size), positions)


@pytest.mark.parametrize("gap", [254, 255, 256, 510, 65534, 65535, 65536, 200_000])
def test_long_gaps_return(gap):
    positions = np.array([0, gap, gap + 1, 3 * gap])
    for way, dtype in (("gap8", np.uint8), ("gap16", np.uint16)):
        full, words = np.iinfo(dtype).max, []
        for passed in np.diff(positions, prepend=-1) - 1:  # the coding, word by word
            words += [full] * (passed // full) + [passed % full]
        decoded = decode_positions(way, np.array(words, dtype), 3 * gap + 1)
        assert np.array_equal(decoded, positions)
    way, words = encode_positions(positions, 3 * gap + 1)
    assert np.array_equal(decode_positions(way, words, 3 * gap + 1), positions)


@pytest.mark.parametrize("density, most", [(0.5, 1.001), (0.2, 1.4), (0.05, 1.45), (0.005, 1.5)])
def test_positions_take_little_more_than_they_must(density, most):
    mask = np.random.default_rng(0).random(200_000) < density
    words = encode_positions(np.flatnonzero(mask), mask.size)[1]
    bound = lower_bound(int(mask.sum()), mask.size)
    assert bound <= words.nbytes <= most * bound


def test_lower_bound_is_the_logarithm_of_all_choices():
    assert lower_bound(3, 10) == pytest.approx(math.log2(math.comb(10, 3)) / 8)


def test_changed_values_are_found(states):
    base, merged = states
    delta = make_delta(base, merged)
    delta.changes["cls_token"][0] ^= 1
    with pytest.raises(CheckpointError, match="what this delta makes of its base: it is damaged"):
        apply_delta(base, delta)
    with pytest.raises(CheckpointError, match="made from: it is damaged"):
        remove_delta(merged, delta)


def test_damage_is_found(states, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = tmp_path / "delta.safetensors"
    save_delta(make_delta(*states), path)
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    emptied = json.loads(metadata["snella"]) | {"base": {}, "merged": {}}
    save_file(tensors, path, {**metadata, "snella": json.dumps(emptied)})
    with pytest.raises(CheckpointError, match="was changed by hand"):
        load_delta(path)
    del metadata["sha256"]  # or else that is all that is told
    name = "cls_token.changes"
    for change in ({name: tensors[name][:-1]}, {name: None}):
        spoilt = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        save_file(spoilt, path, metadata)
        with pytest.raises(CheckpointError, match="damaged.*cls_token"):
            load_delta(path)
    save_file(tensors, path, {**metadata, "format": "other"})
    with pytest.raises(CheckpointError, match="no sparse delta"):
        load_delta(path)
    with pytest.raises(ValueError, match="beyond the 9 weights"):
        decode_positions("gap8", np.array([9], np.uint8), 9)
    with pytest.raises(ValueError, match="unknown coding"):
        decode_positions("rle", np.zeros(1, np.uint8), 9)


def test_the_tool_writes_what_the_library_does(tool, config_file, adapter_file, states, tmp_path):
    out = tmp_path / "delta.safetensors"
    done = tool("export_delta", config_file, adapter_file, out)
    assert done.code == 0
    delta, info = load_delta(out)
    assert same_bits(apply_delta(states[0], delta), states[1])
    assert info["source"].endswith("base.pth")
    assert f"{delta.num_changed:,} changed weights" in done.out
    coded, bound = (sum(row[i] for row in position_bytes(delta)) for i in (1, 2))
    assert 0 < bound <= coded
    shown = tool("inspect_adapter", out)
    assert shown.code == 0 and "sparse delta" in shown.out and "in_proj_weight" in shown.out

"""Adapter files: what comes back is what was saved, and everything else is refused."""

import json
import os
import pickle
import struct

import pytest
import torch
from mmengine.config import Config
from mmseg.apis import init_model
from safetensors.torch import load_file, save_file
from tasks import save_base, scores

from snella_seg.artifacts import (
    AdapterSwitch,
    load_adapter,
    merge_adapters,
    read_adapter,
    save_adapter,
    task_state,
)
from snella_seg.inject import list_adapters
from snella_seg.loading import CheckpointError
from snella_seg.loading.files import load_safetensors


def rewrite(path, change_metadata=None, change_tensors=None):
    """Change an adapter file by hand."""
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    metadata.pop("sha256", None)  # or else that is all that is told
    tensors = load_file(path)
    if change_metadata:
        change_metadata(metadata)
    if change_tensors:
        change_tensors(tensors)
    save_file(tensors, path, metadata)


def same_task(model, other) -> bool:
    mine, its = task_state(model), task_state(other)
    return list(mine) == list(its) and all(torch.equal(mine[k], its[k]) for k in mine)


def test_a_task_comes_back_whole(build, adapter_file, image):
    trained, fresh = build(0), build(7)
    assert not same_task(trained, fresh)
    load_adapter(fresh, adapter_file)
    assert same_task(trained, fresh)
    assert torch.equal(scores(fresh, image), scores(trained, image))


def test_the_file_holds_no_frozen_weight(build, adapter_file):
    file, model = read_adapter(adapter_file), build(0)
    assert set(file.tensors) == set(task_state(model))
    inside = [k for k in file.tensors if k.startswith("backbone.") and ".adapters." not in k]
    assert inside == ["backbone.backbone.cls_token"]
    assert list(file.extras()) == ["cls_token"]


def test_what_is_said_about_it(adapter_file, config):
    info = read_adapter(adapter_file).info
    assert info["header"]["adapter"] == dict(
        rank=4, heads=2, kernel="mixed", sparsifier="weighted", scale=0.1
    )
    assert info["header"]["base"]["source"] == config.model.backbone.base_checkpoint
    assert info["header"]["backbone"]["embed_dims"] == 32
    assert info["metainfo"] == dict(classes=("a", "b"), palette=[[0, 0, 0], [9, 9, 9]])
    assert info["model"]["decode_head"]["pool_scales"] == (1, 2)  # tuples stay tuples
    assert info["matrices"]["layers.0.attn.attn.q"]["shape"] == [32, 32]
    assert {"torch", "mmseg", "snella_seg"} <= set(info["packages"])


def test_adapters_of_a_file_are_those_of_the_model(build, adapter_file):
    own = list_adapters(build(0).backbone.backbone)
    read = read_adapter(adapter_file).adapters()
    assert list(read) == list(own)
    for name, adapter in read.items():
        assert torch.equal(adapter.delta_weight(), own[name].delta_weight()), name


def test_without_heads(build, tmp_path, image):
    trained, fresh = build(0), build(7)
    path = tmp_path / "bare.safetensors"
    file = save_adapter(trained, path, heads=False)
    assert all(name.startswith("backbone.") for name in file.tensors)
    heads = {k: v.clone() for k, v in fresh.state_dict().items() if not k.startswith("backbone.")}
    load_adapter(fresh, path)
    features = fresh.backbone(image), trained.backbone(image)
    assert all(torch.equal(*pair) for pair in zip(*features, strict=True))
    assert all(torch.equal(fresh.state_dict()[k], v) for k, v in heads.items())


def test_mmseg_reads_it_as_a_checkpoint(build, adapter_file, config_file, image):
    model = init_model(str(config_file), str(adapter_file), device="cpu")
    assert torch.equal(scores(model, image), scores(build(0), image))
    assert model.dataset_meta["classes"] == ("a", "b")


def test_mmengine_reads_plain_weights_in_safetensors(build, config, tmp_path, image):
    weights = torch.load(config.model.backbone.base_checkpoint)
    save_file(weights, tmp_path / "base.safetensors")
    model = build(0, base_checkpoint=str(tmp_path / "base.safetensors"))
    assert torch.equal(scores(model, image), scores(build(0), image))


@pytest.fixture
def refusal(build, adapter_file):
    """``refusal(*fragments)``: loading fails with these words and leaves the model as it was."""

    def check(*fragments, force=(), **options):
        model = build(7, **options)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(CheckpointError) as error:
            load_adapter(model, adapter_file, force=force)
        assert "\n" not in str(error.value)
        for fragment in fragments:
            assert fragment in str(error.value)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    return check


def test_another_base_is_refused(refusal, build, config, adapter_file, tmp_path):
    other = str(save_base(config, tmp_path / "other.pth", seed=2))
    refusal("trained on another base", "base.pth", "27 of 27", base_checkpoint=other)
    model = build(7, base_checkpoint=other)
    load_adapter(model, adapter_file, force=["base"])
    assert same_task(model, build(0))
    assert model.backbone.check_base  # as it was


def test_one_changed_weight_of_the_base_is_found(refusal, config, tmp_path):
    weights = torch.load(config.model.backbone.base_checkpoint)
    weights["layers.1.ffn.layers.1.bias"][5] += 1e-7
    torch.save(weights, tmp_path / "other.pth")
    refusal("1 of 27", "layers.1.ffn.layers.1.bias", base_checkpoint=str(tmp_path / "other.pth"))


def test_rounding_of_resized_position_embeddings_is_let_pass(build, adapter_file, config, tmp_path):
    weights = torch.load(config.model.backbone.base_checkpoint)
    weights["pos_embed"] *= 1 + 1e-7
    torch.save(weights, tmp_path / "rounded.pth")
    load_adapter(build(7, base_checkpoint=str(tmp_path / "rounded.pth")), adapter_file)
    weights["pos_embed"] *= 1.01
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="pos_embed"):
        load_adapter(build(7, base_checkpoint=str(tmp_path / "other.pth")), adapter_file)


def test_the_order_of_a_config_is_nothing(build, adapter_file, config):
    def turned(value):
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(list(value))}
        return value

    inner = turned(Config(config.to_dict()).model.backbone.backbone.to_dict())
    inner["norm_cfg"] = dict(eps=1e-6, type="LN")
    model = build(0, backbone=inner)
    save_adapter(model, adapter_file)
    other = build(7, backbone={**inner, "norm_cfg": dict(type="LN", eps=1e-6)})
    load_adapter(other, adapter_file)
    assert same_task(model, other)


def test_another_backbone_is_refused(refusal, config):
    inner = dict(config.model.backbone.backbone, out_indices=(1, 0))
    refusal("another VisionTransformer", "out_indices [0, 1] instead of [1, 0]", backbone=inner)


@pytest.mark.parametrize(
    "option, said",
    [
        (dict(rank=2), "rank 4 instead of 2"),
        (dict(rank=4, sparsifier="soft"), "sparsifier weighted instead of soft"),
        (dict(rank=4, kernel="distance"), "kernel mixed instead of distance"),
        (dict(rank=4, scale=0.2), "scale 0.1 instead of 0.2"),
    ],
)
def test_other_adapter_options_are_refused(refusal, option, said):
    refusal(said, adapter=option)


def test_other_targets_are_refused(refusal):
    refusal("holds what this model lacks", "attn.adapters.k", targets=["q"])
    refusal("misses", "layers.1.ln1.weight", trainable=["cls_token", "layers.1.ln1"])


def test_other_heads_are_refused(build, adapter_file):
    with pytest.raises(CheckpointError, match=r"conv_seg.weight \(4, 16, 1, 1\) instead of \(9, "):
        load_adapter(build(7, classes=9), adapter_file)


@pytest.mark.parametrize("kept", [0, 4, 200, 20_000])
def test_a_file_cut_short_is_refused(refusal, adapter_file, kept):
    adapter_file.write_bytes(adapter_file.read_bytes()[:kept])
    refusal("cut short or no safetensors file")


def test_a_tampered_tensor_is_refused(refusal, adapter_file, build):
    def tamper(tensors):
        tensors["backbone.backbone.layers.0.attn.attn.adapters.q.in_factors"][0, 0, 0] += 1

    rewrite(adapter_file, change_tensors=tamper)
    refusal("changed since it was written", "checksum")
    load_adapter(build(7), adapter_file, force=["checksum"])


def test_tampered_metadata_are_refused(refusal, adapter_file):
    def tamper(metadata):
        info = json.loads(metadata["snella"])
        info["header"]["adapter"]["kernel"] = "distance"
        metadata["snella"] = json.dumps(info)

    rewrite(adapter_file, tamper)
    refusal("checksum")
    rewrite(adapter_file, lambda m: m.update(snella="{"))
    refusal("metadata are damaged")


@pytest.mark.parametrize("version, advice", [("0", "write it anew"), ("2", "update snella_seg")])
def test_other_format_versions_are_refused(refusal, adapter_file, build, version, advice):
    rewrite(adapter_file, lambda m: m.update(version=version))
    refusal(f"format version {version}", advice)
    load_adapter(build(7), adapter_file, force=["version"])


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_not_opened(refusal, adapter_file, tmp_path, config_file, how):
    mark = tmp_path / "harm"
    if how == "pickle":
        adapter_file.write_bytes(pickle.dumps(Payload(mark)))
    else:
        torch.save(Payload(mark), adapter_file)
    refusal("pickle", "has not been opened")
    with pytest.raises(CheckpointError, match="has not been opened"):
        init_model(str(config_file), str(adapter_file), device="cpu")
    assert not mark.exists()


def test_a_header_of_absurd_length_is_refused(refusal, adapter_file):
    adapter_file.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    refusal("cut short or no safetensors file")


def test_headers_of_any_length_are_read(tmp_path):
    """The length of the header comes first in the file: some begin as a pickle does."""
    path, starts = tmp_path / "long.safetensors", set()
    for pad in range(0, 264, 8):
        save_file({"x": torch.zeros(2)}, path, {"pad": "a" * pad})
        starts.add(path.read_bytes()[0])
        assert load_safetensors(path)[1] == {"pad": "a" * pad}
    assert 0x80 in starts


@pytest.mark.parametrize(
    "change",
    [
        lambda info: [info],
        lambda info: {k: v for k, v in info.items() if k != "prefix"},
        lambda info: {**info, "matrices": 3},
        lambda info: {**info, "tensors": [{}]},
        lambda info: {**info, "header": {**info["header"], "backbone": []}},
        lambda info: {**info, "header": {**info["header"], "base": {"weights": []}}},
    ],
)
def test_metadata_of_another_kind_are_refused(refusal, adapter_file, change):
    rewrite(adapter_file, lambda m: m.update(snella=json.dumps(change(json.loads(m["snella"])))))
    refusal("metadata are damaged", force=["checksum"])


def change_info(path, change) -> None:
    """Change an adapter file's metadata by hand."""

    def tamper(metadata):
        info = json.loads(metadata["snella"])
        change(info)
        metadata["snella"] = json.dumps(info)

    rewrite(path, tamper)


def test_a_config_in_a_file_builds_registered_classes_only(adapter_file):
    head = dict(type="subprocess.check_output", args=["true"])
    change_info(adapter_file, lambda info: info["model"].update(decode_head=head))
    with pytest.raises(CheckpointError, match="asks for 'subprocess.check_output'"):
        AdapterSwitch().load(adapter_file, force=["checksum"])


def test_a_base_on_another_machine_is_not_fetched_unasked(adapter_file):
    source = "https://example.org/base.pth"
    change_info(adapter_file, lambda info: info["header"]["base"].update(source=source))
    with pytest.raises(CheckpointError, match="if you trust that, give it as base_checkpoint"):
        AdapterSwitch().load(adapter_file, force=["checksum"])


def test_missing_and_extra_tensors_are_refused(refusal, adapter_file):
    name = "decode_head.conv_seg.bias"
    saved = adapter_file.read_bytes()
    rewrite(adapter_file, change_tensors=lambda t: t.pop(name))
    refusal("misses tensors", name, force=["checksum"])
    adapter_file.write_bytes(saved)
    rewrite(adapter_file, change_tensors=lambda t: t.update(spare=torch.zeros(2)))
    refusal("does not list", "spare", force=["checksum"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_values_are_neither_read_nor_written(refusal, adapter_file, build, tmp_path, value):
    def spoil(tensors):
        tensors["decode_head.conv_seg.bias"][0] = value

    rewrite(adapter_file, change_tensors=spoil)
    refusal("NaN or infinite", "decode_head.conv_seg.bias", force=["checksum"])
    model = build(0)
    model.decode_head.conv_seg.bias.data[0] = value
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        save_adapter(model, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_foreign_files_and_requests_are_refused(build, adapter_file, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="no adapter file of snella_seg"):
        read_adapter(tmp_path / "plain.safetensors")
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        read_adapter(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="ends in .safetensors"):
        save_adapter(build(0), tmp_path / "task.pth")
    with pytest.raises(ValueError, match="cannot force shapes; choose of checksum, version, base"):
        read_adapter(adapter_file, force=["shapes"])
    with pytest.raises(ValueError, match="the model is merged"):
        save_adapter(merge_adapters(build(0)), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="0 SnellaBackbones"):
        save_adapter(torch.nn.Linear(2, 2), tmp_path / "x.safetensors")


def test_a_backbone_that_was_trained_as_a_whole(tool, build, config, tmp_path):
    config.model.backbone = dict(config.model.backbone, method="full")
    config.model.backbone.pop("adapter")
    config.dump(tmp_path / "full.py")
    checkpoint, out = tmp_path / "full.pth", tmp_path / "out.safetensors"
    torch.save(dict(state_dict=build(None).state_dict(), meta={}), checkpoint)
    refused = tool("export_adapter", tmp_path / "full.py", checkpoint, out)
    assert refused.code == 1 and "method='full' trained all of the backbone" in refused.err
    assert len(refused.err.splitlines()) == 1 and not out.exists()
    merged = tool("merge", tmp_path / "full.py", checkpoint, tmp_path / "merged")
    assert merged.code == 0 and "same class on 100.00%" in merged.out


def test_tools_write_read_and_show_it(tool, build, config_file, adapter_file, tmp_path):
    checkpoint, out = tmp_path / "whole.pth", tmp_path / "out.safetensors"
    model = build(0)
    torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
    done = tool("export_adapter", config_file, checkpoint, out)
    assert done.code == 0 and "12 matrices" in done.out
    written, expected = read_adapter(out).tensors, read_adapter(adapter_file).tensors
    assert all(torch.equal(written[k], v) for k, v in expected.items())

    shown = tool("inspect_adapter", out)
    assert shown.code == 0
    for text in ("VisionTransformer", "rank 4, heads 2", "cls_token", "base.pth"):
        assert text in shown.out
    matrix = next(line for line in shown.out.splitlines() if line.startswith("layers.1.ffn"))
    norm = list_adapters(model)["backbone.backbone.layers.1.ffn.layers.0.0.fc1"].delta_weight()
    assert "128x32" in matrix and f"{float(norm.norm()):.4f}" in matrix

    tested = tool("test", config_file, out, "--work-dir", tmp_path / "test")
    assert tested.code == 0 and "mIoU" in tested.out
    refused = tool("train", config_file, "--work-dir", tmp_path / "run", "--resume", out)
    assert refused.code == 1 and "holds no optimizer" in refused.err


def test_a_config_that_is_inherited_needs_no_more(config_file, adapter_file):
    cfg = Config.fromfile(config_file)
    cfg.model.backbone.base_checkpoint = None  # the file says where the base was
    assert init_model(cfg, str(adapter_file), device="cpu").backbone.base_source


def test_mmengine_reads_the_file_once(adapter_file, monkeypatch):
    from mmengine.runner import CheckpointLoader

    from snella_seg.artifacts import adapter_loading as module

    read, load = [], module.load_safetensors
    monkeypatch.setattr(module, "load_safetensors", lambda path: read.append(path) or load(path))
    CheckpointLoader.load_checkpoint(str(adapter_file))
    assert len(read) == 1

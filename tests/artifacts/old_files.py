"""Files in the format of version 0.1, written here without any code of the package.

A ViT of width 16 with one block and a linear head: an adapter file, and a slim checkpoint as the
run's own hook wrote it. The names, the layout of the header, and the digests are spelled out, so
that a change to any of them is seen.
"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

WIDTH, RANK, HEADS = 16, 4, 2
INNER = dict(
    type="VisionTransformer",
    img_size=32,
    patch_size=8,
    embed_dims=WIDTH,
    num_layers=1,
    num_heads=2,
    mlp_ratio=2,
    out_indices=(0,),
    patch_bias=True,
)
MODEL = dict(
    type="EncoderDecoder",
    backbone=dict(type="SnellaBackbone", adapter=dict(rank=RANK, heads=HEADS), backbone=INNER),
    decode_head=dict(
        type="FCNHead",
        in_channels=WIDTH,
        channels=WIDTH,
        num_convs=0,
        concat_input=False,
        num_classes=3,
        dropout_ratio=0.0,
        align_corners=False,
    ),
    test_cfg=dict(mode="whole"),
)
ATTENTION = "layers.0.attn.attn."
#: Prefix of an adapter in the stock backbone, its outputs, its inputs, how many weights it changes.
ADAPTERS = {
    f"{ATTENTION}adapters.q": (WIDTH, WIDTH, 100),
    f"{ATTENTION}adapters.k": (WIDTH, WIDTH, 256),
    f"{ATTENTION}adapters.v": (WIDTH, WIDTH, 1),
    f"{ATTENTION}out_proj.adapters.proj": (WIDTH, WIDTH, 31),
    "layers.0.ffn.layers.0.0.adapters.fc1": (2 * WIDTH, WIDTH, 77),
    "layers.0.ffn.layers.1.adapters.fc2": (WIDTH, 2 * WIDTH, 200),
}
BASE = {
    "cls_token": (1, 1, WIDTH),
    "pos_embed": (1, 17, WIDTH),
    "patch_embed.projection.weight": (WIDTH, 3, 8, 8),
    "patch_embed.projection.bias": (WIDTH,),
    "layers.0.ln1.weight": (WIDTH,),
    "layers.0.ln1.bias": (WIDTH,),
    f"{ATTENTION}in_proj_weight": (3 * WIDTH, WIDTH),
    f"{ATTENTION}in_proj_bias": (3 * WIDTH,),
    f"{ATTENTION}out_proj.weight": (WIDTH, WIDTH),
    f"{ATTENTION}out_proj.bias": (WIDTH,),
    "layers.0.ln2.weight": (WIDTH,),
    "layers.0.ln2.bias": (WIDTH,),
    "layers.0.ffn.layers.0.0.weight": (2 * WIDTH, WIDTH),
    "layers.0.ffn.layers.0.0.bias": (2 * WIDTH,),
    "layers.0.ffn.layers.1.weight": (WIDTH, 2 * WIDTH),
    "layers.0.ffn.layers.1.bias": (WIDTH,),
}
TRAINED = ("cls_token",)  # what a task of version 0.1 trained in the base besides
HEAD = {"decode_head.conv_seg.weight": (3, WIDTH, 1, 1), "decode_head.conv_seg.bias": (3,)}


def write_base(path: Path) -> dict[str, torch.Tensor]:
    """Write the frozen base as a plain checkpoint."""
    state = {name: _values(f"base.{name}", shape) for name, shape in BASE.items()}
    torch.save(state, path)
    return state


def write_adapter_file(path: Path, base: Path) -> dict[str, torch.Tensor]:
    """Write a task as an adapter file; return its tensors."""
    tensors = _task()
    matrices = {
        prefix.replace("adapters.", ""): dict(shape=[rows, columns], rank=RANK, nonzero=nonzero)
        for prefix, (rows, columns, nonzero) in ADAPTERS.items()
    }
    model = {**MODEL, "backbone": {**MODEL["backbone"], "base_checkpoint": base.as_posix()}}
    model["backbone"]["backbone"] = {**INNER, "out_indices": {"__tuple__": [0]}}
    pipeline = [dict(type="LoadImageFromFile"), dict(type="PackSegInputs")]
    info = {
        "header": _header(base),
        "prefix": "backbone.",
        "heads": True,
        "matrices": matrices,
        "model": model,
        "test_pipeline": pipeline,
        "metainfo": {"classes": {"__tuple__": ["a", "b", "c"]}, "palette": [[0] * 3] * 3},
        "packages": {"snella_seg": "0.1.0", "torch": torch.__version__},
        "tensors": sorted(tensors),
    }
    text = json.dumps(info)
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        found.update(value.numpy().tobytes())
    metadata = {
        "format": "snella_seg.adapter",
        "version": "1",
        "snella": text,
        "checksum": found.hexdigest(),
    }
    save_file(tensors, path, metadata)
    return tensors


def write_slim_checkpoint(path: Path, base: Path) -> dict[str, torch.Tensor]:
    """Write a task as a slim checkpoint of an ended run; return its tensors."""
    tensors = _task()
    header = torch.tensor(list(json.dumps(_header(base)).encode()), dtype=torch.uint8)
    torch.save(
        dict(
            meta=dict(epoch=0, iter=8, dataset_meta=dict(classes=("a", "b", "c"))),
            state_dict={**tensors, "backbone.snella_header": header},
        ),
        path,
    )
    return tensors


def as_version_0_1(checkpoint: dict) -> dict:
    """A checkpoint of a run, for resuming, as version 0.1 would have written it.

    Its header did not name the method. Beside the state of the budget it held a mask of every
    matrix, eight weights to a byte, to count changes of hands.
    """
    name = "backbone.snella_header"
    header = json.loads(bytes(checkpoint["state_dict"][name].tolist()))
    del header["method"]
    text = json.dumps(header).encode()
    checkpoint["state_dict"][name] = torch.tensor(list(text), dtype=torch.uint8)
    state = checkpoint["snella"]
    for key in ("churn", "schedule", "scores", "interval"):
        del state[key]
    names = state["tracker"]["names"]
    state["masks"] = {name: torch.full((128,), 0b01010101, dtype=torch.uint8) for name in names}
    assert set(state) == {"tracker", "initial_budget", "reallocations", "masks"}
    return checkpoint


def _task() -> dict[str, torch.Tensor]:
    tensors = {name: _values(name, shape) for name, shape in HEAD.items()}
    for name in TRAINED:
        tensors[f"backbone.backbone.{name}"] = _values(name, BASE[name])
    for prefix, (rows, columns, nonzero) in ADAPTERS.items():
        name = f"backbone.backbone.{prefix}"
        each = RANK // HEADS
        tensors[f"{name}.in_factors"] = _values(f"{name}.in", (HEADS, columns, each))
        tensors[f"{name}.out_factors"] = _values(f"{name}.out", (HEADS, rows, each))
        for scalar in ("alpha", "gamma", "beta"):
            tensors[f"{name}.{scalar}"] = 1.0 + _values(f"{name}.{scalar}", (1,))
        sparsity = 1.0 - nonzero / (rows * columns)
        tensors[f"{name}.sparsity"] = torch.tensor(sparsity, dtype=torch.float64)
    return tensors


def _values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Values that depend on the name alone, on any machine."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(0.3 * values).float()


def _header(base: Path) -> dict:
    frozen = {name: v for name, v in torch.load(base).items() if name not in TRAINED}
    table = frozen["pos_embed"].double().flatten()
    waves = torch.arange(len(table), dtype=torch.float64).sin()
    sketch = [float(table.norm()), float(table.sum()), float(table @ waves)]
    return {
        "version": 1,
        "adapter": dict(rank=RANK, heads=HEADS, kernel="mixed", sparsifier="weighted", scale=0.1),
        "backbone": {**INNER, "out_indices": [0]},
        "base": {
            "source": base.as_posix(),
            "weights": {name: _digest(value) for name, value in frozen.items()},
            "sketches": {"pos_embed": sketch},
        },
    }


def _digest(value: torch.Tensor) -> str:
    kind = repr((tuple(value.shape), "torch.float32")).encode()
    return hashlib.sha256(kind + value.numpy().tobytes()).hexdigest()[:16]

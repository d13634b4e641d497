"""Files of weights as they are published, written from the weights of a model by timm's names."""

import re

import numpy as np
import torch
from safetensors.torch import save_file

RENAMES = {
    "mmpretrain": (
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^norm\.", "ln1."),
        (r"^blocks\.(\d+)\.norm(\d)\.", r"layers.\1.ln\2."),
        (r"^blocks\.(\d+)\.ls1\.gamma", r"layers.\1.attn.gamma1.weight"),
        (r"^blocks\.(\d+)\.ls2\.gamma", r"layers.\1.ffn.gamma2.weight"),
        (r"^blocks\.(\d+)\.mlp\.fc1\.", r"layers.\1.ffn.layers.0.0."),
        (r"^blocks\.(\d+)\.mlp\.fc2\.", r"layers.\1.ffn.layers.1."),
        (r"^blocks\.", "layers."),
    ),
    "mmseg": (
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^norm\.", "ln1."),
        (r"^blocks\.(\d+)\.norm(\d)\.", r"layers.\1.ln\2."),
        (r"^blocks\.(\d+)\.attn\.qkv\.", r"layers.\1.attn.attn.in_proj_"),
        (r"^blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attn.attn.out_proj."),
        (r"^blocks\.(\d+)\.mlp\.fc1\.", r"layers.\1.ffn.layers.0.0."),
        (r"^blocks\.(\d+)\.mlp\.fc2\.", r"layers.\1.ffn.layers.1."),
    ),
    "dinov3": (
        (r"^reg_token$", "storage_tokens"),
        (r"\.gamma_(\d)$", r".ls\1.gamma"),
        (r"\.fc1_g\.", ".w1."),
        (r"\.fc1_x\.", ".w2."),
        (r"(blocks\.\d+\.mlp)\.fc2\.(?=.*gated)", r"\1.w3."),
    ),
}


def renamed(state, rules):
    found = {}
    for name, value in state.items():
        for pattern, new in RENAMES[rules]:
            name = re.sub(pattern, new, name)
        found[name] = value.clone()
    return found


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def noise(like):
    """Weights of another model of the same architecture."""
    return {name: torch.randn_like(value) for name, value in like.items()}


def pth(path, content):
    torch.save(content, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def write_timm(path, state):
    return pth(path, state)


def write_timm_safetensors(path, state):
    path = path.with_suffix(".safetensors")
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path, {"format": "pt"})
    return path


def write_deit(path, state):
    return pth(path, {"model": state})


def write_mae(path, state):
    extra = {
        "mask_token": torch.randn(1, 1, 8),
        "decoder_pos_embed": torch.randn(1, 17, 8),
        "decoder_embed.weight": torch.randn(8, 16),
        "decoder_blocks.0.attn.qkv.weight": torch.randn(24, 8),
        "decoder_norm.weight": torch.randn(8),
        "decoder_pred.weight": torch.randn(192, 8),
    }
    return pth(path, {"model": {**state, **extra}, "epoch": 1})


def write_dino(path, state):
    head = {"head.mlp.0.weight": torch.randn(3, 3), "head.last_layer.weight_g": torch.randn(3, 1)}
    student = prefixed("module.", {**prefixed("backbone.", noise(state)), **head})
    teacher = {**prefixed("backbone.", state), **head}
    return pth(path, {"student": student, "teacher": teacher, "optimizer": {}, "epoch": 3})


def write_dino_teacher_in_ddp(path, state):
    return pth(path, {"teacher": prefixed("module.backbone.", state), "epoch": 3})


def write_moco(path, state):
    whole = {
        **prefixed("module.base_encoder.", {**state, "head.0.weight": torch.randn(3, 3)}),
        **prefixed("module.momentum_encoder.", noise(state)),
        "module.predictor.0.weight": torch.randn(3, 3),
    }
    return pth(path, {"epoch": 1, "arch": "vit", "state_dict": whole})


def write_mmpretrain(path, state):
    state = renamed({k: v for k, v in state.items() if not k.startswith("head.")}, "mmpretrain")
    head = {"head.layers.head.weight": torch.randn(3, 3)}
    return pth(path, {"meta": {}, "state_dict": {**prefixed("backbone.", state), **head}})


def write_mmseg(path, state):
    state = renamed({k: v for k, v in state.items() if not k.startswith("head.")}, "mmseg")
    head = {"decode_head.conv_seg.weight": torch.randn(3, 3)}
    return pth(path, {"meta": {}, "state_dict": {**prefixed("backbone.", state), **head}})


def write_npz(path, state, heads=2):
    """Kernels as flax has them: (in, out), heads as an axis, filters (rows, columns, in, out)."""
    arrays = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].t(),
        "head/bias": state["head.bias"],
    }
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for i in range(depth):
        block, own = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{block}/{theirs}/scale"] = state[f"{own}.{ours}.weight"]
            arrays[f"{block}/{theirs}/bias"] = state[f"{own}.{ours}.bias"]
        for ours, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            arrays[f"{block}/MlpBlock_3/{theirs}/kernel"] = state[f"{own}.mlp.{ours}.weight"].t()
            arrays[f"{block}/MlpBlock_3/{theirs}/bias"] = state[f"{own}.mlp.{ours}.bias"]
        weights, biases = (state[f"{own}.attn.qkv.{k}"].chunk(3) for k in ("weight", "bias"))
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{attention}/{name}/kernel"] = weight.t().unflatten(1, (heads, -1))
            arrays[f"{attention}/{name}/bias"] = bias.unflatten(0, (heads, -1))
        out = state[f"{own}.attn.proj.weight"].t()
        arrays[f"{attention}/out/kernel"] = out.unflatten(0, (heads, -1))
        arrays[f"{attention}/out/bias"] = state[f"{own}.attn.proj.bias"]
    path = path.with_suffix(".npz")
    np.savez(path, **{name: value.numpy() for name, value in arrays.items()})
    return path


def write_beit(path, state):
    """As fine-tuned: a table and index buffers in each block."""
    index = {
        name.replace("_bias_table", "_index"): torch.zeros(17, 17, dtype=torch.long)
        for name in state
        if name.endswith("_bias_table")
    }
    return pth(path, {"model": {**state, **index, "fc_norm.weight": torch.ones(3)}})


def write_beit_pretraining(path, state):
    """As pretrained: one table for all blocks, a mask token, a head over visual words."""
    tables = [name for name in state if name.endswith("_bias_table")]
    rest = {name: value for name, value in state.items() if name not in tables}
    shared = {"rel_pos_bias.relative_position_bias_table": state[tables[0]]}
    extra = {"mask_token": torch.randn(1, 1, 16), "lm_head.weight": torch.randn(3, 3)}
    return pth(path, {"model": {**rest, **shared, **extra}})


def write_dinov2(path, state):
    """Without registers in timm's place: positions of the class token stay apart."""
    names = {"reg_token": "register_tokens"}
    state = {names.get(name, name): value for name, value in state.items()}
    if "register_tokens" in state:
        first = torch.randn(1, 1, state["pos_embed"].shape[-1])
        state["pos_embed"] = torch.cat([first, state["pos_embed"]], 1)
        state["cls_token"] = state["cls_token"] - first
    return pth(path, {**state, "mask_token": torch.randn(1, 16)})


def write_dinov2_gated(path, state):
    """The packed SwiGLU of the giant, by its authors' names."""
    names = ((r"\.mlp\.fc1\.", ".mlp.w12."), (r"\.mlp\.fc2\.", ".mlp.w3."))
    for old, new in names:
        state = {re.sub(old, new, name): value for name, value in state.items()}
    return write_dinov2(path, state)


def write_dinov3(path, state):
    gated = any(".fc1_g." in name for name in state)
    state = renamed(state, "dinov3")
    if gated:
        state = {re.sub(r"\.mlp\.fc2\.", ".mlp.w3.", name): v for name, v in state.items()}
    width = state["cls_token"].shape[-1]
    for i in {name.split(".")[1] for name in state if name.startswith("blocks.")}:
        owner = f"blocks.{i}.attn.qkv"
        q, v = (state.pop(f"blocks.{i}.attn.{k}_bias", torch.zeros(width)) for k in "qv")
        mask = torch.ones(3 * width)
        mask[width : 2 * width] = 0
        state[f"{owner}.bias"] = torch.cat([q, torch.randn(width), v])
        state[f"{owner}.bias_mask"] = mask
    extra = {"mask_token": torch.randn(1, width), "rope_embed.periods": torch.rand(4)}
    return pth(path, {**state, **extra})


def write_swin(path, state):
    """The authors' names: patches are merged at the end of a stage, buffers go along."""

    def earlier(found):
        return f"layers.{int(found[1]) - 1}.downsample"

    state = {re.sub(r"^layers\.(\d)\.downsample", earlier, k): v for k, v in state.items()}
    buffers = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
        "layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16),
        "head.weight": torch.randn(3, 3),
    }
    return pth(path, {"model": {**state, **buffers}})


def write_mit(path, state):
    """The authors' names, from those of mmseg's MixVisionTransformer."""
    found = {}
    for name, value in state.items():
        stage = int(name.split(".")[1]) + 1
        name = re.sub(r"^layers\.\d\.0\.projection\.", f"patch_embed{stage}.proj.", name)
        name = re.sub(r"^layers\.\d\.0\.norm\.", f"patch_embed{stage}.norm.", name)
        name = re.sub(r"^layers\.\d\.1\.", f"block{stage}.", name)
        name = re.sub(r"^layers\.\d\.2\.", f"norm{stage}.", name)
        name = name.replace("attn.attn.out_proj", "attn.proj")
        for old, new in (("0", "fc1"), ("1", "dwconv.dwconv"), ("4", "fc2")):
            name = name.replace(f"ffn.layers.{old}.", f"mlp.{new}.")
        if re.search(r"fc\d\.weight", name):
            value = value[:, :, 0, 0]
        if ".in_proj_" in name:
            q, k, v = value.chunk(3)
            found[name.replace("attn.attn.in_proj_", "attn.q.")] = q
            found[name.replace("attn.attn.in_proj_", "attn.kv.")] = torch.cat([k, v])
        else:
            found[name] = value
    return pth(path, {"state_dict": {**found, "head.weight": torch.randn(3, 3)}})


def write_published(path, model):
    """As Hugging Face's ``save_pretrained`` writes."""
    model.save_pretrained(path)
    return path / "model.safetensors"


def write_bin(path, model):
    """The names that transformers has in memory, in a pickle."""
    path.mkdir()
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    return path / "pytorch_model.bin"

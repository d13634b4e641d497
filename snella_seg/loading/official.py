"""How those who published a model first name its weights, and libraries other than timm.

Entries of :data:`snella_seg.loading.formats.FORMATS`: name, marks, names, values. Most differ from
timm in a prefix or a spelling only and are listed for the report.
"""

from torch import Tensor

from .huggingface import downsample_later
from .names import common_names

_BLOCK = r"^blocks\.\d+\.attn\."
_JAX = (
    (r"^opt/target/|^params/(img/)?", ""),
    (r"^(Transformer/posembed_input/)?pos_embedding$", "pos_embed"),
    (r"^cls$", "cls_token"),
    (r"^embedding/", "patch_embed.proj/"),
    (r"^Transformer/encoder_norm/", "norm/"),
    (r"^Transformer/encoderblock_(\d+)/", r"blocks.\1."),
    (r"LayerNorm_0/", "norm1/"),
    (r"LayerNorm_[12]/", "norm2/"),
    (r"MultiHeadDotProductAttention_\d/(q|k|v)[a-z]+/", r"attn.\1/"),
    (r"MultiHeadDotProductAttention_\d/out/", "attn.proj/"),
    (r"MlpBlock_\d/Dense_0/", "mlp.fc1/"),
    (r"MlpBlock_\d/Dense_1/", "mlp.fc2/"),
    (r"/(kernel|scale)$", ".weight"),
    (r"/bias$", ".bias"),
)


def _from_jax(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Kernels of flax, inputs first and heads apart, as matrices of torch."""
    changed = {}
    for name, value in state.items():
        if ".attn.proj.weight" in name:
            value = value.flatten(0, 1).t()  # (heads, width of one, out)
        elif ".attn." in name and name.endswith(".weight"):
            value = value.flatten(1).t()  # (in, heads, width of one)
        elif ".attn." in name:
            value = value.flatten()
        elif value.ndim == 4:
            value = value.permute(3, 2, 0, 1)  # (rows, columns, in, out)
        elif value.ndim == 2:
            value = value.t()
        changed[name] = value.contiguous()
    return changed


def _mask_key_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply the mask by which DINOv3 has no bias of the keys."""
    masks = {k: v for k, v in state.items() if k.endswith(".bias_mask")}
    state = {k: v for k, v in state.items() if k not in masks}
    for name, mask in masks.items():
        bias = name.removesuffix("_mask")
        if bias in state and not mask.isnan().any():
            state[bias] = state[bias] * mask
    return state


def _split_key_value(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the packed keys and values of a MiT apart."""
    split = {}
    for name, value in state.items():
        if ".attn.kv." in name:
            keys, values = value.chunk(2)
            split[name.replace(".kv.", ".k.")], split[name.replace(".kv.", ".v.")] = keys, values
        else:
            split[name] = value
    return split


FORMATS = (
    ("AugReg (JAX)", (r"^([a-z]+/)*Transformer/encoderblock_\d+/",), _JAX, (_from_jax,)),
    ("official MiT", (r"^block\d\.\d+\.attn\.kv\.",), (), (_split_key_value,)),
    (
        "official Swin",
        (r"^layers\.0\.downsample\.", r"^layers\.\d+\.blocks\.\d+\.attn\."),
        (),
        (downsample_later,),
    ),
    ("timm Swin", (r"^layers\.\d+\.blocks\.\d+\.attn\.",)),
    ("mmseg MixVisionTransformer", (r"^layers\.\d\.1\.\d+\.attn\.attn\.",), (), (common_names,)),
    (
        "mmseg or mmpretrain Swin",
        (r"^stages\.\d+\.blocks\.\d+\.attn\.w_msa\.",),
        (),
        (common_names,),
    ),
    ("mmseg VisionTransformer", (r"^layers\.\d+\.attn\.attn\.in_proj",), (), (common_names,)),
    ("mmpretrain ViT or mmseg BEiT", (r"^layers\.\d+\.attn\.qkv\.",), (), (common_names,)),
    ("mmseg TIMMBackbone", (r"^timm_model\.",), (), (common_names,)),
    ("official DINOv3", (_BLOCK, r"^storage_tokens$"), (), (_mask_key_bias,)),
    ("official DINOv2 with registers", (_BLOCK, r"^register_tokens$")),
    ("official DINOv2", (_BLOCK, r"^mask_token$", r"\.ls1\.gamma$")),
    ("official MAE", (_BLOCK, r"^decoder_embed\.")),
    ("official BEiT", (_BLOCK, r"\.gamma_1$", r"\.q_bias$")),
    ("official distilled DeiT", (_BLOCK, r"^dist_token$")),
    ("timm ViT", (_BLOCK,)),
)

"""The backbone wrapper that users name in their configs."""

import copy
from collections.abc import Sequence

import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmseg.registry import MODELS

from ..checkpoint import check_adapters, check_base, init_base_weights
from ..inject import adapters_disabled, add_adapters, freeze_base
from ..layers import enable_recompute
from .attention import fuse_attention


@MODELS.register_module()
class SnellaBackbone(BaseModule):
    """A frozen pretrained backbone with SNELLA adapters on its encoder matrices.

    Each adapted matrix computes with ``W0 + delta``: :func:`snella_seg.inject.add_adapters` gives
    it a :class:`snella_seg.layers.SnellaAdapter`, whose
    :class:`snella_seg.functional.DeltaRule` calls the kernel and the sparsifier.

    Args:
        backbone: config of a stock backbone, required: mmseg's VisionTransformer or
            SwinTransformer, or TIMMBackbone around a timm ViT or Swin.
        adapter: arguments of :class:`snella_seg.layers.SnellaAdapter`: rank, heads, kernel,
            sparsifier, initial_sparsity, scale.
        targets: ``'auto'`` (q, k, v, attention projection and both MLP layers of every block) or
            patterns, see :func:`snella_seg.inject.select_matrices`; ``[]`` adapts nothing, which
            leaves a frozen backbone.
        trainable: base parameters that are trained besides the adapters: ``'auto'`` (the class
            token, and the output norms of mmseg's Swin, which no ImageNet checkpoint has) or
            patterns, see :func:`snella_seg.inject.freeze_base`. All others are frozen.
        fused_attention: use ``scaled_dot_product_attention`` in mmcv's attention (where it is
            adapted) and in mmseg's Swin, BEiT and MAE; results agree to rounding. timm does by
            itself.
        recompute: let adapted layers make the outputs of GELU and LayerNorm again in backward
            instead of keeping them (:func:`snella_seg.layers.enable_recompute`): the same bits
            and a third less memory per block for a little time.
        pretrained: path of base weights; the older spelling of ``init_cfg``.
        init_cfg: passed on to the stock backbone, for example
            ``dict(type='Pretrained', checkpoint=...)``. None keeps the one in ``backbone``.

    Input (N, 3, H, W); output as of the stock backbone: a tuple of maps (N, C, H/s, W/s).

    Raises:
        ValueError: on options or patterns that fit nothing, with near matches.
        TypeError: on arguments that belong to the inner backbone.
    """

    def __init__(
        self,
        backbone: dict | None = None,
        adapter: dict | None = None,
        targets: str | Sequence[str] = "auto",
        trainable: str | Sequence[str] = "auto",
        fused_attention: bool = True,
        recompute: bool = True,
        pretrained: str | None = None,
        init_cfg: dict | None = None,
        **leaked,
    ) -> None:
        super().__init__()
        if leaked:
            raise TypeError(
                f"SnellaBackbone got {', '.join(sorted(leaked))}, which belong to the inner "
                "backbone: wrap a config with backbone=dict(_delete_=True, "
                "type='SnellaBackbone', backbone={{_base_.model.backbone}})"
            )
        self.backbone = MODELS.build(_inner_config(backbone, pretrained, init_cfg))
        add_adapters(self.backbone, adapter, targets)
        freeze_base(self.backbone, trainable)
        self._channels_last = str(getattr(_timm_model(self), "output_fmt", "")).endswith("NHWC")
        if fused_attention:
            fuse_attention(self.backbone)
        if recompute:
            enable_recompute(self.backbone)
        self._register_load_state_dict_pre_hook(self._before_load)

    def init_weights(self) -> None:
        """Load or draw the base weights as the stock backbone does; adapters are not touched."""
        with adapters_disabled(self.backbone):
            init_base_weights(self.backbone)

    def forward(self, x):
        if self.training and torch.is_grad_enabled() and _checkpoints_blocks(self.backbone):
            # Reentrant checkpointing passes gradients only to blocks whose input wants one.
            x = x.detach().requires_grad_()
        outputs = self.backbone(x)
        if self._channels_last:
            return tuple(out.permute(0, 3, 1, 2).contiguous() for out in outputs)
        return tuple(outputs)

    def train(self, mode: bool = True):
        """Switch modes as the stock backbone does; what is trained stays trained."""
        trained = [p for p in self.backbone.parameters() if p.requires_grad]
        super().train(mode)
        for parameter in trained:  # Swin's frozen_stages would freeze adapters as well
            parameter.requires_grad_(True)
        return self

    def _before_load(self, state_dict, prefix, *_):
        """Take in stock names, then refuse what is incomplete, misshapen or not finite."""
        inner = f"{prefix}backbone."
        if not any(key.startswith(inner) for key in state_dict):
            for key in [k for k in state_dict if k.startswith(prefix)]:
                state_dict[inner + key.removeprefix(prefix)] = state_dict.pop(key)
        check_base(self.backbone, state_dict, inner, "the checkpoint")
        check_adapters(self.backbone, state_dict, inner)


def _checkpoints_blocks(backbone) -> bool:
    """Whether blocks are recomputed in backward: mmseg's ``with_cp``, timm's checkpointing."""
    names = ("with_cp", "grad_checkpointing")
    return any(getattr(m, name, False) is True for m in backbone.modules() for name in names)


def _timm_model(wrapper: SnellaBackbone):
    return getattr(wrapper.backbone, "timm_model", None)


def _inner_config(
    backbone: dict | None, pretrained: str | None, init_cfg: dict | None
) -> ConfigDict:
    """The stock backbone's config with one place, ``init_cfg``, that says where its weights are."""
    if not isinstance(backbone, dict) or "type" not in backbone:
        raise ValueError(
            "SnellaBackbone needs backbone=dict(type=...), the config of a stock backbone, "
            f"got {backbone!r}"
        )
    inner = ConfigDict(copy.deepcopy(dict(backbone)))
    if inner["type"] in ("SnellaBackbone", SnellaBackbone):
        raise ValueError(
            "SnellaBackbone wraps a SnellaBackbone: the config that you inherit is wrapped "
            "already; override its adapter, targets or trainable instead"
        )
    sources = [source for source in (init_cfg, inner.get("init_cfg")) if source]
    for path in (pretrained, inner.get("pretrained")):
        if isinstance(path, str):
            sources.append(dict(type="Pretrained", checkpoint=path))
    if isinstance(inner.get("pretrained"), str):
        del inner["pretrained"]
    if any(source != sources[0] for source in sources):
        raise ValueError(f"base weights are named twice, give one of: {sources}")
    if sources:
        inner["init_cfg"] = sources[0]
    return inner

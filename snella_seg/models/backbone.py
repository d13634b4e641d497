"""The backbone wrapper that users name in their configs."""

import copy
from collections.abc import Sequence

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmseg.registry import MODELS

from ..checkpoint import CheckpointError, check_adapters, check_base, init_base_weights
from ..header import (
    HEADER,
    check_adapter_options,
    check_version,
    compare_base,
    decode_header,
    frozen_state,
    plain_config,
)
from ..inject import adapters_disabled, add_adapters, freeze_base, is_adapter_key
from ..layers import disable_recompute, enable_recompute
from ..methods import get_method
from .attention import fuse_attention, restore_attention


@MODELS.register_module()
class SnellaBackbone(BaseModule):
    """A frozen pretrained backbone with SNELLA adapters on its encoder matrices.

    Each adapted matrix computes with ``W0 + delta``: :func:`snella_seg.inject.add_adapters` gives
    it a :class:`snella_seg.layers.SnellaAdapter`, whose
    :class:`snella_seg.functional.DeltaRule` calls the kernel and the sparsifier.

    Args:
        backbone: config of a stock backbone, required: mmseg's VisionTransformer or
            SwinTransformer, or TIMMBackbone around a timm ViT or Swin.
        method: what is tuned, a name in :data:`snella_seg.methods.METHODS`: ``'snella'``, its
            ablations, or what it is compared with (``'lora'``, ``'full'``, ``'frozen'`` ...). Its
            settings go before ``adapter``, ``targets`` and ``trainable``.
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
        base_checkpoint: path of base weights; goes before all others. Unlike ``init_cfg`` it is
            kept by mmseg's ``init_model``.
        check_base: refuse slim checkpoints and adapters that were trained on another base, by the
            digests of its weights; False only warns.
        pretrained: path of base weights; the older spelling of ``init_cfg``.
        init_cfg: passed on to the stock backbone, for example
            ``dict(type='Pretrained', checkpoint=...)``. None keeps the one in ``backbone``.

    Attributes:
        method: the :class:`snella_seg.methods.Method`.
        inner_config: the stock backbone's config, as JSON has it.
        trained_base: names of the base parameters that are trained.
        base_source: the file that the base came from, or None where it is not known; only a base
            that can be had again is left out of slim checkpoints.
        merged: whether :func:`snella_seg.artifacts.merge_adapters` has put the deltas into it.

    Input (N, 3, H, W); output as of the stock backbone: a tuple of maps (N, C, H/s, W/s).

    Raises:
        ValueError: on options or patterns that fit nothing, with near matches.
        TypeError: on arguments that belong to the inner backbone.
    """

    def __init__(
        self,
        backbone: dict | None = None,
        method: str = "snella",
        adapter: dict | None = None,
        targets: str | Sequence[str] = "auto",
        trainable: str | Sequence[str] = "auto",
        fused_attention: bool = True,
        recompute: bool = True,
        base_checkpoint: str | None = None,
        check_base: bool = True,
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
        self.method = get_method(method)
        adapter = {**(adapter or {}), **self.method.adapter}
        targets = targets if self.method.targets is None else self.method.targets
        trainable = trainable if self.method.trainable is None else self.method.trainable
        config = _inner_config(backbone, pretrained, init_cfg, base_checkpoint)
        self.inner_config = plain_config(config)
        self.backbone = MODELS.build(config)
        add_adapters(self.backbone, adapter, targets)
        freeze_base(self.backbone, trainable)
        self.trained_base = frozenset(
            name
            for name, parameter in self.backbone.named_parameters()
            if parameter.requires_grad and not is_adapter_key(name)
        )
        self.fused_attention, self.recompute = fused_attention, recompute
        self.check_base = check_base
        self.base_source = _timm_source(self.backbone, config)
        self._base_is_loaded = self.base_source is not None
        self.merged = False
        self._channels_last = str(getattr(_timm_model(self), "output_fmt", "")).endswith("NHWC")
        self.optimize_modules()
        self._register_load_state_dict_pre_hook(self._before_load)

    @property
    def named_source(self) -> str | None:
        """The file of base weights that the config names, loaded or not."""
        init_cfg = self.backbone.init_cfg
        return init_cfg.get("checkpoint") if isinstance(init_cfg, dict) else None

    def init_weights(self) -> None:
        """Load or draw the base weights as the stock backbone does; adapters are not touched."""
        loaded = getattr(self.backbone, "is_init", False)  # by timm, when it was built
        with adapters_disabled(self.backbone):
            init_base_weights(self.backbone)
        if not loaded and self.named_source is not None:
            self.base_source, self._base_is_loaded = self.named_source, True

    def optimize_modules(self) -> None:
        """Let modules run as ``fused_attention`` and ``recompute`` ask for.

        To be called again after adapters were attached.
        """
        if self.fused_attention:
            fuse_attention(self.backbone)
        if self.recompute:
            enable_recompute(self.backbone)

    def restore_modules(self) -> None:
        """Undo :meth:`optimize_modules`: but for adapters, all modules are stock ones."""
        restore_attention(self.backbone)
        disable_recompute(self.backbone)

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
        """Take in stock names and slim checkpoints; refuse what is incomplete or does not fit."""
        inner = f"{prefix}backbone."
        header = state_dict.pop(prefix + HEADER, None)
        if not any(key.startswith(inner) for key in state_dict):
            for key in [k for k in state_dict if k.startswith(prefix)]:
                state_dict[inner + key.removeprefix(prefix)] = state_dict.pop(key)
        if header is not None:
            header = decode_header(header)
            check_version(header["version"], "the checkpoint's SNELLA header")
            check_adapter_options(self, header)
        whole = any(inner + name in state_dict for name in frozen_state(self))
        if header is not None and not whole:
            self._add_base(state_dict, inner, header)
        check_base(self.backbone, state_dict, inner, "the checkpoint")
        check_adapters(self.backbone, state_dict, inner)
        if whole:
            self._follow_base(state_dict, inner)

    def _add_base(self, state_dict: dict, inner: str, header: dict) -> None:
        """Complete the state of a slim checkpoint by this model's own base."""
        if not self._base_is_loaded:
            self._load_base(header["base"].get("source"))
        problem = compare_base(self, header)
        if problem and self.check_base:
            raise CheckpointError(
                f"{problem}. Set model.backbone.base_checkpoint to the base that they were trained "
                "on, or model.backbone.check_base=False to load them all the same"
            )
        if problem:
            print_log(f"{problem}; loaded all the same (check_base=False)", "current", level=30)
        for name, value in frozen_state(self).items():
            state_dict[inner + name] = value

    def _load_base(self, recorded: str | None) -> None:
        """Load the base from where the config says, or else from where it was in training."""
        if self.named_source is None and recorded is None:
            raise CheckpointError(
                "the checkpoint leaves out the frozen base and the config does not name its file; "
                "set model.backbone.base_checkpoint"
            )
        if self.named_source is None and "://" in recorded:
            raise CheckpointError(
                f"the checkpoint says that its base is at {recorded}; if you trust that, give it "
                "as model.backbone.base_checkpoint"
            )
        if self.named_source is None:
            self.backbone.init_cfg = dict(type="Pretrained", checkpoint=recorded)
        try:
            self.init_weights()
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"the checkpoint leaves out the frozen base. {error}, or set "
                "model.backbone.base_checkpoint"
            ) from None

    def _follow_base(self, state_dict: dict, inner: str) -> None:
        """Forget the base's file when weights of another base are about to be loaded."""
        self._base_is_loaded = True
        for name, value in frozen_state(self).items():
            given = state_dict.get(inner + name)
            if given is not None and not torch.equal(given.to(value.device), value):
                self.base_source = None


def _checkpoints_blocks(backbone) -> bool:
    """Whether blocks are recomputed in backward: mmseg's ``with_cp``, timm's checkpointing."""
    names = ("with_cp", "grad_checkpointing")
    return any(getattr(m, name, False) is True for m in backbone.modules() for name in names)


def _timm_model(wrapper: SnellaBackbone):
    return getattr(wrapper.backbone, "timm_model", None)


def _timm_source(backbone, config: ConfigDict) -> str | None:
    """Where TIMMBackbone, which loads when it is built, has its weights from."""
    if not getattr(backbone, "is_init", False):
        return None
    return config.get("checkpoint_path") or f"timm, {config.get('model_name')}, pretrained=True"


def _inner_config(
    backbone: dict | None,
    pretrained: str | None,
    init_cfg: dict | None,
    base_checkpoint: str | None,
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
    if base_checkpoint is not None:
        sources = [dict(type="Pretrained", checkpoint=base_checkpoint)]
        if inner["type"] == "TIMMBackbone":  # which would load when it is built
            inner.update(pretrained=False, checkpoint_path="")
    if any(source != sources[0] for source in sources):
        raise ValueError(f"base weights are named twice, give one of: {sources}")
    if sources:
        inner["init_cfg"] = sources[0]
    return inner

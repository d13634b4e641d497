"""The backbone wrapper that users name in their configs."""

import copy
from collections.abc import Sequence

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmseg.registry import MODELS

from ..configs import type_name
from ..inject import (
    AUTO_TRAINABLE,
    adapter_keys,
    add_adapters,
    cover,
    freeze_base,
    get_method,
    list_adapters,
    settle,
)
from ..layers import AdaptedModule, PeftAdapter, disable_recompute, enable_recompute
from ..layers.typed_options import typed_options
from ..loading import load_base, take_in
from ..loading.plain_config import plain_config
from ..loading.resizing import BAND_RULES
from .bands import first_filters, input_bands
from .fused_attention import fuse_attention, restore_attention
from .image_size import ImageSizes, with_timm_options


@MODELS.register_module()
class SnellaBackbone(BaseModule):
    """A frozen pretrained backbone with SNELLA adapters on its encoder matrices.

    Each adapted matrix computes with ``W0 + delta``: :func:`snella_seg.inject.add_adapters` gives
    it a :class:`snella_seg.layers.SnellaAdapter`, whose
    :class:`snella_seg.functional.DeltaRule` calls the kernel and the sparsifier.

    Args:
        backbone: config of a stock backbone, required: one of mmseg, or TIMMBackbone around one of
            timm; docs/backbones.md lists those that are tested. timm's get what they need to take
            images of any size (``dynamic_img_size`` and the like) where the config does not say.
        method: what is tuned, a name in :data:`snella_seg.inject.METHODS`: ``'snella'``, or what
            it is compared with (``'lora'``, ``'full'``, ``'frozen'`` ...). ``adapter``, ``targets``
            and ``trainable`` that contradict it are refused. Or a dict of its name as ``type`` and
            options of its adapters: ``dict(type='peft', config='ShiraConfig', r=32)``.
        adapter: arguments of :class:`snella_seg.layers.SnellaAdapter`: rank, heads, kernel,
            sparsifier, initial_sparsity, scale.
        targets: ``'auto'`` (every linear map of every encoder block), ``'all-linear'`` (those
            between blocks as well) or patterns, see :func:`snella_seg.inject.select_matrices`;
            ``[]`` adapts nothing, which leaves a frozen backbone.
        trainable: base parameters that are trained besides the adapters: ``'auto'`` (the class
            token, the output norms of mmseg's Swin, which no ImageNet checkpoint has, and the
            patch embedding where ``bands`` is given) or patterns, see
            :func:`snella_seg.inject.freeze_base`. All others are frozen.
        fused_attention: use ``scaled_dot_product_attention`` in mmcv's attention and in mmseg's
            Swin, BEiT and MAE, whatever the method; results agree to rounding. timm does by
            itself.
        recompute: let adapted layers make the outputs of GELU and LayerNorm again in backward
            instead of keeping them (:func:`snella_seg.layers.enable_recompute`): the same bits
            and a third less memory per block for a little time.
        base_checkpoint: path of base weights; goes before all others. Unlike ``init_cfg`` it is
            kept by mmseg's ``init_model``.
        check_base: refuse slim checkpoints and adapters that were trained on another base, by the
            digests of its weights; False only warns.
        bands: how the patch embedding for images of other bands starts from one for RGB, and is
            trained then: ``'mean'``, ``'copy'`` or ``'random'``, see
            :func:`snella_seg.loading.resizing.fit_bands`. None asks for weights of these bands,
            or for a patch embedding among ``trainable``, which starts from the mean.
        pretrained: path of base weights; the older spelling of ``init_cfg``.
        init_cfg: passed on to the stock backbone, for example
            ``dict(type='Pretrained', checkpoint=...)``. None keeps the one in ``backbone``.

    Attributes:
        method: the :class:`snella_seg.inject.Method`, and its name in ``method_name``.
        inner_config: the stock backbone's config, as JSON has it.
        trained_base: names of the base parameters that are trained.
        base_source: the file that the base came from, or None where it is not known; only a base
            that can be had again is left out of slim checkpoints.
        base_is_loaded: whether the base has the weights that it is to have.
        merged: whether :func:`snella_seg.artifacts.merge_adapters` has put the deltas into it.

    Input (N, 3, H, W); output as of the stock backbone: a tuple of maps (N, C, H/s, W/s).

    Raises:
        ValueError: on options or patterns that fit nothing, with near matches, and on settings
            that contradict the method.
        TypeError: on arguments that belong to the inner backbone.
    """

    @typed_options
    def __init__(
        self,
        backbone: dict | None = None,
        method: str | dict = "snella",
        adapter: dict | None = None,
        targets: str | Sequence[str] = "auto",
        trainable: str | Sequence[str] = "auto",
        fused_attention: bool = True,
        recompute: bool = True,
        base_checkpoint: str | None = None,
        check_base: bool = True,
        bands: str | None = None,
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
        name, adapter = _name_and_options(method, adapter)
        self.method_name, self.method = name, get_method(name)
        adapter, targets, trainable = settle(name, adapter, targets, trainable)
        config = _inner_config(backbone, pretrained, init_cfg, base_checkpoint)
        config = ConfigDict(with_timm_options(config))
        self.inner_config = plain_config(config)
        self.backbone = MODELS.build(config)
        if bands is not None and bands not in BAND_RULES:
            raise ValueError(f"bands must be one of {', '.join(BAND_RULES)}, not {bands!r}")
        self.bands = bands or "mean"
        if bands is not None and trainable == "auto" and input_bands(self.backbone) != 3:
            trainable = [*AUTO_TRAINABLE, *first_filters(self.backbone)]
        adapters = add_adapters(self.backbone, adapter, targets, self.method.adapter_class)
        if targets == "auto":
            print_log(f"targets='auto', {cover(self.backbone, adapters).line()}", "current")
        self.image_sizes = ImageSizes(config, self.backbone)
        freeze_base(self.backbone, trainable)
        ours = adapter_keys(self.backbone)
        self.trained_base = frozenset(
            name
            for name, parameter in self.backbone.named_parameters()
            if parameter.requires_grad and name not in ours
        )
        self.fused_attention, self.recompute = fused_attention, recompute
        self.check_base = check_base
        self.base_source = _timm_source(self.backbone, config)
        self.base_is_loaded = self.base_source is not None
        self.merged, self._adapters_are_new = False, True
        self._channels_last = str(getattr(_timm_model(self), "output_fmt", "")).endswith("NHWC")
        self._checkpoints_blocks = _checkpoints_blocks(self.backbone)
        self.optimize_modules()
        self._register_load_state_dict_pre_hook(self._before_load)

    @property
    def named_source(self) -> str | None:
        """The file of base weights that the config names, loaded or not."""
        init_cfg = self.backbone.init_cfg
        return init_cfg.get("checkpoint") if isinstance(init_cfg, dict) else None

    def init_weights(self) -> None:
        """Load or draw the base weights as the stock backbone does.

        Adapters are not touched, but for PEFT's where none has been trained or loaded: some tuners
        start from the weights.
        """
        load_base(self)
        if self.method_name == "peft" and self._adapters_are_new:
            for module in self.backbone.modules():
                if isinstance(module, AdaptedModule):
                    module.delta_blocks()  # shows the adapters their weights
            PeftAdapter.begin(list_adapters(self.backbone))
            self._adapters_are_new = False

    def _before_load(self, state_dict, prefix, *_):
        self._adapters_are_new = False
        take_in(self, state_dict, prefix)

    def optimize_modules(self) -> None:
        """Let modules run as ``fused_attention`` and ``recompute`` ask for.

        To be called again after adapters were attached.
        """
        if self.fused_attention:
            fuse_attention(self.backbone)
        if self.recompute and adapter_keys(self.backbone):
            enable_recompute(self.backbone)

    def restore_modules(self) -> None:
        """Undo :meth:`optimize_modules`: but for adapters, all modules are stock ones."""
        restore_attention(self.backbone)
        disable_recompute(self.backbone)

    def forward(self, x):
        if self._checkpoints_blocks and self.training and torch.is_grad_enabled():
            # Reentrant checkpointing passes gradients only to blocks whose input wants one.
            x = x.detach().requires_grad_()
        fitted = self.image_sizes.fit(x)
        outputs = tuple(self.backbone(fitted))
        if self._channels_last:
            outputs = tuple(out.permute(0, 3, 1, 2).contiguous() for out in outputs)
        return self.image_sizes.crop(outputs, x, fitted)

    def train(self, mode: bool = True):
        """Switch modes as the stock backbone does; what is trained stays trained."""
        trained = [p for p in self.backbone.parameters() if p.requires_grad]
        self._checkpoints_blocks = _checkpoints_blocks(self.backbone)
        super().train(mode)
        for parameter in trained:  # Swin's frozen_stages would freeze adapters as well
            parameter.requires_grad_(True)
        return self


def _name_and_options(method: str | dict, adapter: dict | None) -> tuple[str, dict | None]:
    """The name of a method, and all options of its adapters."""
    if not isinstance(method, dict):
        return method, adapter
    options = dict(method)
    name = options.pop("type", None)
    twice = [key for key in options if key in (adapter or {})]
    if name is None or twice:
        raise ValueError(
            f"method={method!r} must be a name, or a dict with type and options that adapter does "
            "not give as well"
        )
    return name, {**(adapter or {}), **options} or None


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
    if type_name(inner) == SnellaBackbone.__name__:
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
        if type_name(inner) == "TIMMBackbone":  # which would load when it is built
            inner.update(pretrained=False, checkpoint_path="")
    if any(source != sources[0] for source in sources):
        raise ValueError(f"base weights are named twice, give one of: {sources}")
    if sources:
        inner["init_cfg"] = sources[0]
    return inner

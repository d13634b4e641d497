"""Whole UperNet models from the real configs, all variants of one holding the same heads."""

import copy

import torch
from baselines import unfreeze
from cases import Setting, fill_zeros
from measure import Case, autocast, module_tensors, storages
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from variants import HEADS, Variant, tune

import snella_seg.register  # noqa: F401
from snella_seg.cli.machine import fit_to_machine
from snella_seg.configs import load_config, own

CONFIGS = {"vit_b": "snella_upernet_ade20k.py", "swin_t": "snella_upernet_swin_ade20k.py"}


class UperNet:
    """A whole segmentor from a real config; all variants share its neck and heads.

    Sharing makes it possible to hold all variants at once: frozen backbones also share their
    weights, and AdamW's state of the heads exists once. Weights are random, drop-path as in the
    config, BatchNorm of one process. With one image the pooled 1x1 maps have a single value per
    channel, which BatchNorm refuses: there the heads' BatchNorms run in eval mode.

    Args:
        name: 'vit_b' (the ViT-B/16 config) or 'swin_t' (the Swin config, made Swin-T).
        head_channels: width of the UperNet head; the auxiliary head is at most as wide.
        smoke: tiny sizes.
    """

    def __init__(
        self, name: str, head_channels: int, setting: Setting, smoke: bool = False
    ) -> None:
        init_default_scope("mmseg")
        self.name, self.setting = name, setting
        cfg = load_config(own(CONFIGS[name])[0])
        fit_to_machine(cfg, "none")  # one process: BN instead of SyncBN
        model = self._resize(cfg.model, head_channels, smoke)
        self.backbone_cfg = model.backbone
        self.inner_cfg = model.backbone.backbone
        model.backbone = self.inner_cfg
        self.size = self.inner_cfg.get("img_size", (64, 64) if smoke else (512, 512))
        self.classes = model.decode_head.num_classes
        self.segmentor = MODELS.build(model)
        self.segmentor.backbone.init_weights()
        fill_zeros(self.segmentor).to(setting.device).train()
        if setting.batch == 1:
            for module in self.segmentor.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        self.weights = dict(self.segmentor.backbone.named_parameters())
        self.heads = [m for n, m in self.segmentor.named_children() if n != "backbone"]
        self.head_optimizer = adamw([p for m in self.heads for p in m.parameters()])
        self.images = torch.randn(setting.batch, 3, *self.size, device=setting.device)
        self.samples = [self._labels() for _ in range(setting.batch)]

    def _resize(self, model, head_channels: int, smoke: bool):
        """Set the sizes that are asked for in the model's config."""
        model.pretrained = None
        inner = model.backbone.backbone
        inner.update(init_cfg=None, pretrained=None)
        if self.name == "swin_t":
            inner.update(embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24])
        if smoke and self.name == "swin_t":
            inner.update(embed_dims=16, depths=[2, 1, 1, 1], num_heads=[1, 2, 2, 2])
        elif smoke:
            inner.update(img_size=(64, 64), embed_dims=32, num_layers=4, num_heads=2)
            inner.update(out_indices=(0, 1, 2, 3))
        width = inner.embed_dims
        swin = self.name == "swin_t"
        widths = [width * 2**i for i in range(4)] if swin else [width] * 4
        if not swin:
            model.neck.update(in_channels=widths, out_channels=width)
        auxiliary = model.auxiliary_head
        model.decode_head.update(in_channels=widths, channels=head_channels)
        auxiliary.update(
            in_channels=widths[auxiliary.in_index], channels=min(auxiliary.channels, head_channels)
        )
        return model

    def _labels(self) -> SegDataSample:
        labels = torch.randint(0, self.classes, (1, *self.size), device=self.setting.device)
        labels[torch.rand(labels.shape, device=self.setting.device) < 0.05] = 255  # ignored
        sample = SegDataSample(metainfo=dict(img_shape=self.size, ori_shape=self.size))
        sample.gt_sem_seg = PixelData(data=labels)
        return sample

    def backbone(self, variant: Variant) -> nn.Module:
        """A backbone tuned as ``variant`` says, with the weights that all have."""
        cfg = self.inner_cfg
        if variant.method == "snella":
            adapter = dict(
                rank=self.setting.rank,
                heads=HEADS,
                initial_sparsity=self.setting.sparsity,
                **variant.options,
            )
            cfg = copy.deepcopy(self.backbone_cfg)
            cfg.update(adapter=adapter, recompute=variant.recompute)
        model = MODELS.build(cfg).to(self.setting.device)
        self._set_weights(getattr(model, "backbone", model), own=variant.method == "full")
        if variant.method != "snella":
            model = tune(model, variant, self.setting.rank, self.setting.sparsity)
        if variant.method == "reference":  # what SnellaBackbone trains besides
            unfreeze(model, r"cls_token|norm\d\..*")
        model.to(self.setting.device).train()
        return model

    def _set_weights(self, backbone: nn.Module, own: bool) -> None:
        """Put the common weights in; those that train are copies."""
        parameters = dict(backbone.named_parameters())
        for name, weight in self.weights.items():
            trains = own or name == "cls_token" or name.startswith("norm")
            values = weight.detach()
            parameters[name].data = values.clone() if trains else values

    def case(self, variant: Variant) -> Case:
        """A training step: loss, backward pass, AdamW, zero_grad."""
        backbone = self.backbone(variant)
        trained = [p for p in backbone.parameters() if p.requires_grad]
        optimizers = [self.head_optimizer, *([adamw(trained)] if trained else [])]

        def forward():
            self.segmentor.backbone = backbone
            with autocast(self.setting.device, self.setting.dtype):
                losses = self.segmentor.loss(self.images, self.samples)
            return self.segmentor.parse_losses(losses)[0]

        def finish():
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        modules = [backbone, *self.heads]
        inputs = [self.images, *(sample.gt_sem_seg.data for sample in self.samples)]
        learnt = [*trained, *(p for m in self.heads for p in m.parameters())]
        state = 2 * sum(p.numel() * p.element_size() for p in learnt)
        facts = dict(
            resident=sum(storages(module_tensors(modules)).values()) + state,
            trained=sum(p.numel() for p in trained),
        )
        return Case(
            key=variant.key,
            label=variant.label,
            forward=forward,
            backward=Tensor.backward,
            finish=finish,
            modules=modules,
            inputs=inputs,
            facts=facts,
        )


def adamw(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW whose state exists already, so that a first step allocates what any step does."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer

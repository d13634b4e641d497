"""What SNELLA is compared with: the reference way of computing it, LoRA, full tuning, frozen.

All work on stock modules whose attention has been written out (:mod:`attention`), at the same
sites: q, k, v and output projection of every attention, both layers of every MLP.
"""

import importlib.util
import math
import re

import torch
import torch.nn.functional as F
from attention import replace_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

#: The adapted layers: ends of the names of their modules. 'fc1' and 'fc2' are single layers.
SITES = ("q", "k", "v", "proj", "ffn.layers.0.0", "ffn.layers.1", "fc1", "fc2")


class ReferenceLinear(nn.Module):
    """SNELLA as its public implementation computes it: a branch beside the frozen layer.

    ``y = x W0^T + b + drop_path(dropout(x) delta^T)``. The branch runs under activation
    checkpointing, so delta is made in forward and again in backward, and each time the threshold
    is the quantile of all |K|. Distances are ``torch.cdist``'s in its default mode, through a
    matrix product. Kernel 'mixed', sparsifier 'weighted'.

    Args:
        base: the frozen layer; its parameters are taken over.
        rank: over all heads.
        sparsity: share of the weights that take no part.
        heads: number of distances, of weight 0.1 * (+1, -1, ...).
        dropout: of the branch's input.
        drop_path: share of samples that lose the branch.
        reentrant: the older kind of checkpointing, which repeats the branch's product in backward;
            the newer kind stops once delta is there again.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int = 32,
        sparsity: float = 0.9,
        heads: int = 2,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        reentrant: bool = False,
    ) -> None:
        super().__init__()
        self.base, self.sparsity = base, sparsity
        self.dropout, self.drop_path, self.reentrant = dropout, drop_path, reentrant
        like = dict(device=base.weight.device, dtype=base.weight.dtype)
        width = rank // heads
        self.in_factors = nn.Parameter(torch.empty(heads, base.in_features, width, **like))
        self.out_factors = nn.Parameter(torch.empty(heads, base.out_features, width, **like))
        for factors in (self.in_factors, self.out_factors):
            nn.init.kaiming_uniform_(factors, a=math.sqrt(5))
        self.alpha = nn.Parameter(torch.ones(1, **like))
        self.gamma = nn.Parameter(torch.ones(1, **like))
        self.beta = nn.Parameter(torch.zeros(1, **like))
        signs = torch.tensor([0.1 * (-1) ** h for h in range(heads)], **like)
        self.register_buffer("head_weights", signs.view(-1, 1, 1), persistent=False)

    def delta_weight(self) -> Tensor:
        """The sparse delta, (out, in)."""
        distances = torch.cdist(self.out_factors, self.in_factors)
        distance = (self.head_weights * distances).sum(0)
        mixed = distance + self.alpha * torch.softmax(distance / self.gamma, dim=0) + self.beta
        magnitude = mixed.detach().abs()
        mask = magnitude > torch.quantile(magnitude, self.sparsity)
        return mixed * magnitude * mask

    def branch(self, x: Tensor) -> Tensor:
        return F.linear(F.dropout(x, self.dropout, self.training), self.delta_weight())

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.branch, x, use_reentrant=self.reentrant)
        if self.drop_path and self.training:
            keep = 1.0 - self.drop_path
            y = y * y.new_empty(len(y), *[1] * (y.ndim - 1)).bernoulli_(keep).div_(keep)
        return self.base(x) + y


def add_reference(model: nn.Module, **options) -> list[ReferenceLinear]:
    """Replace the layers at all sites by :class:`ReferenceLinear`; the rest is frozen."""
    model.requires_grad_(False)
    made = []
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and any(f".{name}".endswith(f".{s}") for s in SITES):
            made.append(ReferenceLinear(module, **options))
            replace_module(model, name, made[-1])
    if not made:
        raise ValueError(f"no layer of {type(model).__name__} is named as one of {SITES}")
    return made


def peft_missing() -> str | None:
    """Why there are no LoRA rows, or None."""
    if importlib.util.find_spec("peft") is None:
        return "LoRA is not measured: the package peft is not installed (pip install peft)"
    return None


def add_lora(model: nn.Module, rank: int) -> nn.Module:
    """Inject Hugging Face PEFT's LoRA at all sites, scale 1, no dropout; the rest is frozen.

    LoRA starts with B = 0; B is filled with small random values, so that no product is with zeros.
    """
    import peft

    present = [s for s in SITES if any(f".{n}".endswith(f".{s}") for n, _ in model.named_modules())]
    config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=present)
    model = peft.inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name:
            nn.init.normal_(parameter, std=1e-3)
    return model


def unfreeze(model: nn.Module, pattern: str) -> None:
    """Let the parameters whose names match a regular expression take gradients."""
    for name, parameter in model.named_parameters():
        if re.fullmatch(pattern, name):
            parameter.requires_grad_(True)

"""What can be tuned in a backbone, and how: SNELLA, its ablations, and what it is compared with.

One key of a config chooses, ``model.backbone.method``; model, data, heads, schedule and tools stay
the same. A method's settings go before the config's own.
"""

import difflib
from dataclasses import dataclass, field

ALLOCATIONS = ("competition", "uniform", "fixed")


@dataclass(frozen=True)
class Method:
    """What a name stands for.

    Args:
        label: for tables and plots.
        about: one line.
        adapter: options of :class:`snella_seg.layers.SnellaAdapter` that it sets.
        targets: matrices that it adapts; None for those of the config.
        trainable: base parameters that it trains; None for those of the config.
        allocation: what :class:`snella_seg.hooks.SparsityAllocationHook` does: ``'competition'``
            (the scheduled budget, shared by importance), ``'uniform'`` (the scheduled budget, each
            matrix as dense as the others), ``'fixed'`` (the target sparsity in each matrix, from
            the first iteration on), or None, nothing.
        importance: by which matrices compete; None for that of the hook.
    """

    label: str
    about: str
    adapter: dict = field(default_factory=dict)
    targets: tuple[str, ...] | None = None
    trainable: tuple[str, ...] | None = None
    allocation: str | None = "competition"
    importance: str | None = None


#: Norms that segmentation adds behind a pretrained backbone belong to the heads.
_OUTPUT_NORMS = "norm[0-9]"

METHODS = {
    "full": Method(
        "full fine-tuning",
        "every weight of the backbone is trained",
        targets=(),
        trainable=("*",),
        allocation=None,
    ),
    "frozen": Method(
        "frozen",
        "nothing of the backbone is trained, only the heads",
        targets=(),
        trainable=(_OUTPUT_NORMS,),
        allocation=None,
    ),
    "bitfit": Method(
        "BitFit",
        "the biases of the backbone are trained (arXiv 2106.10199)",
        targets=(),
        trainable=("*bias", _OUTPUT_NORMS),
        allocation=None,
    ),
    "lora": Method(
        "LoRA",
        "the linear kernel, all weights take part (arXiv 2106.09685), lora_alpha = rank",
        adapter=dict(kernel="linear", sparsifier="none", initial_sparsity=0.0, scale=1.0),
        allocation=None,
    ),
    "snell": Method(
        "SNELL",
        "the distance kernel, the same sparsity in all matrices (arXiv 2411.01800)",
        adapter=dict(kernel="distance", sparsifier="soft"),
        allocation="fixed",
    ),
    "snella": Method("SNELLA", "as the config says: adapters whose matrices compete"),
    "snella_uniform": Method(
        "SNELLA, no layer competition",
        "the budget falls as scheduled, each matrix as dense as the others",
        allocation="uniform",
    ),
    "snella_fixed": Method(
        "SNELLA, fixed sparsity",
        "the target sparsity in each matrix, from the first iteration on",
        allocation="fixed",
    ),
    "snella_dense": Method(
        "SNELLA, dense",
        "all weights take part, to the end",
        adapter=dict(initial_sparsity=0.0),
        allocation=None,
    ),
    "snella_weighted": Method(
        "SNELLA, weighted", "K |K| of the largest", adapter=dict(sparsifier="weighted")
    ),
    "snella_soft": Method("SNELLA, soft", "K max(|K| - t, 0)", adapter=dict(sparsifier="soft")),
    "snella_hard": Method("SNELLA, hard", "K of the largest", adapter=dict(sparsifier="hard")),
    "snella_distance": Method(
        "SNELLA, distance kernel", "without the softmax", adapter=dict(kernel="distance")
    ),
    "snella_linear": Method(
        "SNELLA, linear kernel",
        "LoRA's product under both competitions",
        adapter=dict(kernel="linear"),
    ),
    "snella_sensitivity": Method(
        "SNELLA, sensitivity", "matrices compete by |p grad p|", importance="sensitivity"
    ),
    "snella_magnitude": Method(
        "SNELLA, magnitude", "matrices compete by |p|", importance="magnitude"
    ),
    "snella_frobenius": Method(
        "SNELLA, Frobenius", "matrices compete by the norm of their delta", importance="frobenius"
    ),
}


def get_method(name: str) -> Method:
    """Look a method up.

    Raises:
        ValueError: when there is none of that name; near names are listed.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, cutoff=0.4) or METHODS
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join(near)}")
    return METHODS[name]

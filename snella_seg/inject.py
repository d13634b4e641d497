"""Find the matrices of a backbone, give them adapters, freeze the rest."""

import contextlib
import difflib
import fnmatch
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from .layers import AdaptedModule, SnellaAdapter
from .layers.adapted import adapted_class

QKV = ("q", "k", "v")

#: The encoder matrices that ``targets='auto'`` adapts: end of the weight's name -> its matrices,
#: stacked by rows in this order. mmcv attention (mmseg ViT), mmcv FFN, mmseg Swin, timm and BEiT.
AUTO_TARGETS = {
    "attn.attn.in_proj_weight": QKV,
    "attn.attn.out_proj.weight": ("proj",),
    "ffn.layers.0.0.weight": ("fc1",),
    "ffn.layers.1.weight": ("fc2",),
    "attn.w_msa.qkv.weight": QKV,
    "attn.w_msa.proj.weight": ("proj",),
    "attn.qkv.weight": QKV,
    "attn.proj.weight": ("proj",),
    "mlp.fc1.weight": ("fc1",),
    "mlp.fc2.weight": ("fc2",),
}
#: What ``trainable='auto'`` trains, where a backbone has it: the class token, and the output norms
#: that mmseg's Swin adds to the pretrained model.
AUTO_TRAINABLE = ("cls_token", "norm[0-9]")
#: The order of the kinds in tables.
KINDS = (*QKV, "proj", "fc1", "fc2")


@dataclass(frozen=True)
class Matrix:
    """One matrix that can be adapted: rows of a weight of a module.

    ``name`` is the module's name and the matrix's kind, joined by a dot; ``weight`` is the name of
    the weight.
    """

    weight: str
    module: str
    kind: str
    start: int
    stop: int
    in_features: int
    auto: bool

    @property
    def name(self) -> str:
        return f"{self.module}.{self.kind}" if self.module else self.kind


def find_matrices(model: nn.Module) -> list[Matrix]:
    """List every matrix of ``model`` that can be adapted, in the order of its modules.

    These are the weights of all ``nn.Linear`` and the packed projections of all
    ``nn.MultiheadAttention``; q, k and v of a packed weight are three matrices.
    """
    matrices = []
    for module_name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            weight_name = "in_proj_weight"
        elif isinstance(module, nn.Linear):
            weight_name = "weight"
        else:
            continue
        weight = module._parameters.get(weight_name)
        if weight is None:  # attention with keys and values of other widths
            continue
        full_name = f"{module_name}.{weight_name}" if module_name else weight_name
        kinds = _auto_kinds(full_name)
        auto = kinds is not None
        if kinds is None:
            packed = weight_name == "in_proj_weight" or module_name.endswith("qkv")
            kinds = QKV if packed else (module_name.rpartition(".")[2] or "weight",)
        rows = weight.shape[0] // len(kinds)
        if rows * len(kinds) != weight.shape[0]:
            continue  # not q, k and v of one width
        for i, kind in enumerate(kinds):
            span = (i * rows, (i + 1) * rows)
            matrices.append(Matrix(full_name, module_name, kind, *span, weight.shape[1], auto))
    return matrices


def _auto_kinds(weight_name: str) -> tuple[str, ...] | None:
    for ending, kinds in AUTO_TARGETS.items():
        if weight_name == ending or weight_name.endswith("." + ending):
            return kinds
    return None


def select_matrices(model: nn.Module, targets: str | Iterable[str] = "auto") -> list[Matrix]:
    """Choose matrices by ``'auto'`` or by patterns.

    Args:
        model: the backbone.
        targets: ``'auto'`` for q, k, v, attention projection and both MLP layers of every block;
            or a list of patterns, each the name of a kind (``'q'``, ``'fc1'``), of a module or of
            a matrix, with the wildcards of :mod:`fnmatch` (``'layers.1?.ffn.*'``,
            ``'*.downsample.reduction'``). An empty list adapts nothing.

    Raises:
        ValueError: when 'auto' or any pattern matches nothing; the message names near matches.
    """
    matrices = find_matrices(model)
    if isinstance(targets, str) and targets == "auto":
        chosen = [m for m in matrices if m.auto]
        if not chosen:
            raise ValueError(
                f"targets='auto' knows no encoder layer in {type(model).__name__}; give patterns, "
                f"for example from: {', '.join(m.name for m in matrices[:8]) or 'none found'}"
            )
        return chosen
    patterns = [targets] if isinstance(targets, str) else list(targets)
    chosen = set()
    for pattern in patterns:
        matched = [m for m in matrices if _matches(m, pattern)]
        if not matched:
            known = {n for m in matrices for n in (m.name, m.module, m.kind)}
            raise ValueError(f"target {pattern!r} matches no matrix{_near(pattern, known)}")
        chosen.update(matched)
    return [m for m in matrices if m in chosen]


def _matches(matrix: Matrix, pattern: str) -> bool:
    return matrix.kind == pattern or any(
        fnmatch.fnmatchcase(name, pattern) for name in (matrix.name, matrix.module)
    )


def _near(pattern: str, known: Iterable[str]) -> str:
    """The end of a message about a name that matched nothing."""
    known = sorted(known)
    near = difflib.get_close_matches(pattern, known, n=4, cutoff=0.4) or known[:4]
    return f"; near matches: {', '.join(near)}" if near else ""


def make_adapters(
    model: nn.Module, adapter: dict | None = None, targets: str | Iterable[str] = "auto"
) -> dict[str, SnellaAdapter]:
    """Make an adapter for every chosen matrix of ``model``, which is left as it is.

    Args:
        model: the backbone.
        adapter: arguments of :class:`snella_seg.layers.SnellaAdapter` (rank, kernel, ...).
        targets: see :func:`select_matrices`.

    Returns:
        Matrix name -> adapter, in the order of the modules, for :func:`attach_adapters`.

    Raises:
        ValueError: on unknown arguments or targets.
    """
    options = dict(adapter or {})
    known = [*inspect.signature(SnellaAdapter).parameters][2:]
    for key in options:
        if key not in known:
            raise ValueError(f"unknown adapter option {key!r}{_near(key, known)}")
    made = {}
    for matrix in select_matrices(model, targets):
        module, _, weight_name = matrix.weight.rpartition(".")
        weight = model.get_submodule(module)._parameters[weight_name]
        new = SnellaAdapter(matrix.in_features, matrix.stop - matrix.start, **options)
        made[matrix.name] = new.to(
            weight.device, torch.float64 if weight.dtype == torch.float64 else None
        )
    if not made:
        SnellaAdapter(1, 1, **options)  # refuses bad options where nothing is adapted, too
    return made


def attach_adapters(model: nn.Module, adapters: dict[str, SnellaAdapter]) -> None:
    """Let adapters act on the matrices that they are named after, in place.

    The adapted modules stay where they are and keep their parameters and the names of these.

    Args:
        model: the backbone; must not carry adapters.
        adapters: matrix name -> adapter, see :func:`make_adapters`.

    Raises:
        ValueError: when the model is adapted already, or lacks a matrix.
    """
    if list_adapters(model):
        raise ValueError(f"{type(model).__name__} carries SNELLA adapters already; wrap it once")
    matrices = {matrix.name: matrix for matrix in find_matrices(model)}
    unknown = [name for name in adapters if name not in matrices]
    if unknown:
        raise ValueError(
            f"{type(model).__name__} has no matrix {unknown[0]!r}{_near(unknown[0], matrices)}"
        )
    for name, adapter in adapters.items():
        matrix = matrices[name]
        module = _adapted(model.get_submodule(matrix.module))
        module.add_adapter(matrix.kind, (matrix.start, matrix.stop), adapter)
    for module in model.modules():
        # The stock attention reads its output projection's weight and never calls it.
        if isinstance(module, nn.MultiheadAttention) and isinstance(module.out_proj, AdaptedModule):
            _adapted(module)


def detach_adapters(model: nn.Module) -> dict[str, SnellaAdapter]:
    """Take all adapters off a model, whose modules are stock modules again.

    Returns:
        Matrix name -> adapter, for :func:`attach_adapters`.
    """
    adapters = list_adapters(model)
    for module in [m for m in model.modules() if isinstance(m, AdaptedModule)]:
        module.stop_adapting()
    return adapters


def add_adapters(
    model: nn.Module, adapter: dict | None = None, targets: str | Iterable[str] = "auto"
) -> dict[str, SnellaAdapter]:
    """Give every chosen matrix of ``model`` an adapter: make them and attach them, in place.

    Arguments, result and errors are those of :func:`make_adapters` and :func:`attach_adapters`.
    """
    adapters = make_adapters(model, adapter, targets)
    attach_adapters(model, adapters)
    return adapters


def _adapted(module: nn.Module) -> AdaptedModule:
    """Turn a module into an adapted one, in place, unless it is one."""
    if not isinstance(module, AdaptedModule):
        module.__class__ = adapted_class(type(module))
        module.start_adapting()
    return module


def list_adapters(model: nn.Module) -> dict[str, SnellaAdapter]:
    """Matrix name -> adapter of a model, in the order of its modules."""
    return {
        f"{name}.{kind}" if name else kind: adapter
        for name, module in model.named_modules()
        if isinstance(module, AdaptedModule)
        for kind, adapter in module.adapters.items()
    }


def set_adapters_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch all adapters of a model on or off; off, it computes what the stock model does."""
    for module in model.modules():
        if isinstance(module, AdaptedModule):
            module.adapters_enabled = enabled


@contextlib.contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Within this context the model is the stock model, and its weights read as such."""
    before = [(m, m.adapters_enabled) for m in model.modules() if isinstance(m, AdaptedModule)]
    set_adapters_enabled(model, False)
    try:
        yield
    finally:
        for module, enabled in before:
            module.adapters_enabled = enabled


#: Part of the name of every parameter and buffer that belongs to an adapter.
_ADAPTER_KEY = re.compile(r"(^|\.)adapters\.[^.]+\.[^.]+$")


def is_adapter_key(name: str) -> bool:
    """Whether a parameter's or buffer's name belongs to an adapter rather than to the base."""
    return _ADAPTER_KEY.search(name) is not None


def freeze_base(model: nn.Module, trainable: str | Iterable[str] = "auto") -> None:
    """Let only the adapters and the parameters that match ``trainable`` take gradients.

    Args:
        model: the adapted backbone.
        trainable: ``'auto'`` for the class token and Swin's output norms, where there are any; or
            patterns for names of parameters or of modules (:mod:`fnmatch`). ``'cls_token'`` may
            match nothing, since not every backbone has one.

    Raises:
        ValueError: when another pattern matches nothing; the message names near matches.
    """
    if isinstance(trainable, str):
        trainable = AUTO_TRAINABLE if trainable == "auto" else [trainable]
    patterns = list(trainable)
    base = {n: p for n, p in model.named_parameters() if not is_adapter_key(n)}
    for pattern in patterns:
        if pattern not in AUTO_TRAINABLE and not any(covers(pattern, name) for name in base):
            owners = {name.rpartition(".")[0] for name in base} - {""}
            near = _near(pattern, {*base, *owners})
            raise ValueError(f"trainable {pattern!r} matches no parameter{near}")
    for name, parameter in model.named_parameters():
        wanted = is_adapter_key(name) or any(covers(pattern, name) for pattern in patterns)
        parameter.requires_grad_(wanted)


def covers(pattern: str, name: str) -> bool:
    """Whether a pattern names the parameter, a module that owns it, or its last part."""
    parts = name.split(".")
    owners = (".".join(parts[:i]) for i in range(1, len(parts) + 1))
    return parts[-1] == pattern or any(fnmatch.fnmatchcase(owner, pattern) for owner in owners)

"""Tuners of Hugging Face's PEFT as adapters of one matrix each.

Any tuner that PEFT can put around an ``nn.Linear`` works, and on every matrix that SNELLA adapts:
PEFT sees the rows of a packed weight as a linear layer of their own.
"""

import difflib
import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .adapter import Adapter

#: Options that a run and its checkpoints must agree on: PEFT leaves the first to chance; by the
#: second, tensors that a seed brings back would be saved with every layer.
_DEFAULTS = {"random_seed": 0, "save_projection": False}


class FrozenRows(nn.Linear):
    """The rows of a frozen weight, seen as a linear layer that owns nothing.

    Args:
        in_features, out_features: of the matrix.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.show(torch.zeros(out_features, in_features), None)

    def show(self, weight: Tensor, bias: Tensor | None) -> None:
        """Be this layer from now on, without taking part in its gradients or its state."""
        self.__dict__["_shown"] = weight, bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out, in)."""
        weight: Tensor = self.__dict__["_shown"][0]
        return weight

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """(out,) or None."""
        bias: Tensor | None = self.__dict__["_shown"][1]
        return bias

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shown": (torch.zeros(self.out_features, self.in_features), None)}


class PeftRule:
    """How a PEFT layer changes a weight, with the signature of a :class:`DeltaRule`.

    The change is what the layer makes of the identity: exact to rounding for every linear tuner,
    those that scale or rotate the weight included.
    """

    kernel = sparsifier = "peft"
    competes = False

    def __init__(self, adapter: "PeftAdapter") -> None:
        self.adapter = adapter

    def __call__(
        self, params: tuple[Tensor, ...], sparsity: float, threshold: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The delta (out, in) by these parameters, and a threshold that says nothing."""
        adapter, weight = self.adapter, self.adapter.rows.weight
        dtype = params[0].dtype if params else weight.dtype
        eye = torch.eye(adapter.in_features, dtype=dtype, device=weight.device)
        bias, training = adapter.rows.bias, adapter.layer.training
        adapter.rows.show(weight.to(dtype), None)
        adapter.layer.eval()  # no dropout
        values = dict(zip(adapter.names, params, strict=True))
        try:
            effective = functional_call(adapter.layer, values, eye)
        finally:
            adapter.layer.train(training)
            adapter.rows.show(weight, bias)
        return effective.T - weight.to(dtype), weight.new_tensor(-1.0)


class PeftAdapter(Adapter):
    """One matrix, adapted by a layer of PEFT.

    Args:
        in_features: columns of the matrix.
        out_features: rows of the matrix.
        config: name of a config class of ``peft``, such as ``'LoraConfig'``, ``'ShiraConfig'``.
        options: arguments of that class (``r``, ``lora_alpha``, ``use_dora`` ...), but for those
            that choose modules.

    Raises:
        ImportError: when peft is not installed.
        ValueError: when PEFT has no such config, does not know an option, or cannot wrap a linear
            layer by it.
    """

    computes_product = True
    stands_alone = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        config: str,
        *,
        layer: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features)
        if layer is None:
            layer = _make_layers({"matrix": (out_features, in_features)}, config, options)["matrix"]
        self.layer, self._options = layer, {"config": config, **options}
        self.rule = PeftRule(self)  # type: ignore[assignment]
        self.names = [n for n, p in layer.named_parameters() if p.requires_grad]

    @classmethod
    def for_shapes(
        cls, shapes: Mapping[str, tuple[int, int]], **options: Any
    ) -> dict[str, Adapter]:
        config = options.pop("config", None)
        return {
            name: cls(columns, rows, config, layer=layer, **options)
            for (name, (rows, columns)), layer in zip(
                shapes.items(), _make_layers(shapes, config, options).values(), strict=True
            )
        }

    @staticmethod
    def begin(adapters: Mapping[str, "PeftAdapter"]) -> None:
        """Start anew on the weights that the adapters see, once the base has been loaded.

        Some tuners start from the weight: DoRA's magnitudes are its norms. All adapters of a model
        go together, since tuners may share tensors between layers. Leaves torch's generator alone.

        Raises:
            ValueError: for a start that changes the frozen weight itself, such as PiSSA's.
        """
        if not adapters:
            return
        first = next(iter(adapters.values()))
        options = first.options()
        config = options.pop("config")
        shapes = {n: (a.out_features, a.in_features) for n, a in adapters.items()}
        shown = {n: a.rows.weight.detach().float().clone() for n, a in adapters.items()}
        before = {name: weight.clone() for name, weight in shown.items()}
        with torch.random.fork_rng(devices=[]):
            layers = _make_layers(shapes, config, options, shown)
        for name, adapter in adapters.items():
            if not torch.equal(shown[name], before[name]):
                raise ValueError(
                    f"{config} with these options changes the frozen weight when it starts: choose "
                    "another init_lora_weights"
                )
            adapter.layer.load_state_dict(layers[name].state_dict())

    @property
    def rows(self) -> FrozenRows:
        """The linear layer that PEFT sees."""
        rows = self.layer.get_base_layer()  # type: ignore[operator]
        assert isinstance(rows, FrozenRows)
        return rows

    @property
    def params(self) -> tuple[Tensor, ...]:
        found = dict(self.layer.named_parameters())
        return tuple(found[name] for name in self.names)

    @property
    def factors(self) -> tuple[nn.Parameter, ...]:
        return tuple(p for p in self.params if isinstance(p, nn.Parameter))

    def options(self) -> dict[str, Any]:
        """The config's name and its arguments."""
        return dict(self._options)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x`` (..., in) through PEFT's layer around ``weight`` (out, in) and ``bias``."""
        self.rows.show(weight, bias)
        y: Tensor = self.layer(x)
        return y

    def see(self, weight: Tensor) -> None:
        self.rows.show(weight, None)


def _make_layers(
    shapes: Mapping[str, tuple[int, int]],
    config: str | None,
    options: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, nn.Module]:
    """PEFT's layers around matrices of these shapes (out, in), by their names.

    Without ``weights`` (out, in) the matrices are zero.
    """
    cls, options = _config_class(config, options)
    holder, keys = nn.Module(), [f"m{i}" for i in range(len(shapes))]  # PEFT reads dots as paths
    for key, (name, (rows, columns)) in zip(keys, shapes.items(), strict=True):
        frozen = FrozenRows(columns, rows)
        if weights is not None:
            frozen.show(weights[name], None)
        holder.add_module(key, frozen)
    holder.register_parameter("device", nn.Parameter(torch.zeros(1)))  # PEFT asks for one
    if shapes:
        _inject(cls, {**options, "target_modules": keys}, holder)
    return {name: holder.get_submodule(key) for name, key in zip(shapes, keys, strict=True)}


def _config_class(name: str | None, options: Mapping[str, Any]) -> tuple[type, dict[str, Any]]:
    """A config class of peft, and its arguments, checked."""
    if importlib.util.find_spec("peft") is None:
        raise ImportError("method='peft' needs the package peft: pip install 'snella_seg[peft]'")
    try:
        import peft
    except Exception as error:  # it imports transformers, which older versions of torch do not suit
        raise ImportError(
            f"peft cannot be imported ({type(error).__name__}: {error}); versions of peft and "
            f"transformers that go with torch {torch.__version__} are needed"
        ) from error
    known = [n for n in dir(peft) if n.endswith("Config") and n != "PeftConfig"]
    if name is None:
        raise ValueError("method='peft' needs config, a class of peft such as 'LoraConfig'")
    if name not in known:
        near = difflib.get_close_matches(str(name), known) or known
        raise ValueError(f"peft has no config {name!r}; it has {', '.join(near)}")
    cls = getattr(peft, name)
    parameters = inspect.signature(cls).parameters
    for key in options:
        if key == "target_modules":
            raise ValueError("target_modules is set by targets of model.backbone; leave it out")
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters) or [*parameters]
            raise ValueError(
                f"{name} of peft does not take {key!r}; choose one of {', '.join(near)}"
            )
    defaults = {key: value for key, value in _DEFAULTS.items() if key in parameters}
    return cls, {**defaults, **options}


def _inject(cls: type, options: dict[str, Any], holder: nn.Module) -> None:
    """Let PEFT wrap the layers of ``holder``."""
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    name = cls.__name__
    try:
        get_peft_model(holder, cls(**options))
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        raise ValueError(f"peft cannot wrap these matrices by {name}: {error}") from error
    if not all(isinstance(layer, BaseTunerLayer) for layer in holder.children()):
        raise ValueError(f"peft does not wrap linear layers by {name}")

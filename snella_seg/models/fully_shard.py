"""Several processes that share one frozen base between them."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn

from ..inject.encoder_blocks import find_blocks
from .task_state import find_wrappers


@MODEL_WRAPPERS.register_module()
class SnellaFullyShard(MMDistributedDataParallel):
    """MMDistributedDataParallel whose processes hold a share each of the frozen base.

    The frozen parameters within SnellaBackbones are cut by torch's ``fully_shard`` (FSDP2): an
    encoder block is gathered for its forward pass and again for its backward pass, and let go after
    each; what lies outside of blocks is one more unit. What trains (adapters, norms, neck, heads)
    is whole in every process and its gradients are averaged as DDP does, so thresholds, importances
    and budgets are those of DDP.

    The base is whole until the first training step, so that it is initialised, loaded and resumed
    as ever, and again while the model is evaluated, since images of different sizes ask for
    different numbers of forward passes. Its state dict is whole within :meth:`whole_state`, which
    :class:`snella_seg.hooks.SnellaCheckpointHook` enters to write plain checkpoints.

    Args:
        module: the segmentor.
        **kwargs: of MMDistributedDataParallel, such as ``find_unused_parameters``.

    Attributes:
        units: what is gathered at a time, as ``FSDPModule``; empty before the first training step.

    Raises:
        ValueError: when nothing is frozen, or this torch cannot shard.
    """

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        _check_torch()
        frozen = [
            f"{prefix}backbone.{name}"
            for prefix, wrapper in find_wrappers(module)
            for name, parameter in wrapper.backbone.named_parameters()
            if not parameter.requires_grad
        ]
        if not frozen:
            raise ValueError(
                "SnellaFullyShard shards the frozen base of a SnellaBackbone, and here nothing is "
                "frozen: use MMDistributedDataParallel"
            )
        self._set_params_and_buffers_to_ignore_for_model(module, frozen)
        super().__init__(module, **kwargs)
        self.units: list[Any] = []
        self._sharded = False
        self._whole: dict[nn.Module, dict[str, Tensor]] = {}

    def train_step(self, data, optim_wrapper):
        """One step, with a sharded base."""
        self.shard()
        return super().train_step(data, optim_wrapper)

    def val_step(self, data):
        """Predictions of a batch, with the whole base."""
        self.gather()
        return super().val_step(data)

    def test_step(self, data):
        """Predictions of a batch, with the whole base."""
        self.gather()
        return super().test_step(data)

    def shard(self) -> None:
        """Keep this process's share of the frozen base only. To be called by all processes."""
        if not self.units:
            self._cut()
        elif not self._sharded:
            for unit in self.units:
                unit.set_reshard_after_forward(True, recurse=False)
                unit.reshard()
        self._sharded = True

    def gather(self) -> None:
        """Have the whole base in every process until :meth:`shard`. To be called by all."""
        if self._sharded:
            for unit in self.units:
                unit.set_reshard_after_forward(False, recurse=False)
                unit.unshard()
        self._sharded = False

    def _cut(self) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        processes = get_world_size()
        device = next(self.module.parameters()).device.type
        options: dict[str, Any] = dict(
            mesh=init_device_mesh(device, (processes,)),
            ignored_params={p for p in self.module.parameters() if p.requires_grad or not p.ndim},
            shard_placement_fn=lambda parameter: _placement(parameter, processes),
            reshard_after_forward=True,
        )
        for _, wrapper in find_wrappers(self.module):
            base = wrapper.backbone
            parts = [*(block for _, block in find_blocks(base)), base]
            self.units += [fully_shard(part, **options) for part in parts]
            base.register_state_dict_post_hook(lambda *args: self._put_whole(*args))

    @contextlib.contextmanager
    def whole_state(self) -> Iterator[None]:
        """Within this context state dicts hold the base whole; for the main process, on the CPU.

        To be entered by all processes: they gather one parameter at a time.
        """
        if self.units:
            self.shard()
        self._whole = {}
        for _, wrapper in find_wrappers(self.module):
            values = self._whole[wrapper.backbone] = {}
            for name, parameter in wrapper.backbone.named_parameters():
                if hasattr(parameter, "full_tensor"):
                    value = parameter.detach().full_tensor()
                    if is_main_process():
                        values[name] = value.cpu()
        try:
            yield
        finally:
            self._whole = {}

    def _put_whole(self, base: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Put gathered values into a state dict of a sharded base (a state dict hook of torch).

        Raises:
            RuntimeError: where they were not gathered; a single process cannot do so.
        """
        known = self._whole.get(base, {})
        for key in [key for key, value in state.items() if hasattr(value, "full_tensor")]:
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                if name not in known:
                    raise RuntimeError(
                        f"{key} is sharded among processes: take the state dict within "
                        "SnellaFullyShard.whole_state, which all of them have to enter"
                    )
                state[key] = known[name]


def whole_state(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """:meth:`SnellaFullyShard.whole_state` of a model that has it; nothing for others."""
    return getattr(model, "whole_state", contextlib.nullcontext)()


def _placement(parameter: nn.Parameter, processes: int) -> Any:
    """The first dimension that can be cut evenly, else the first, whose shares are padded."""
    from torch.distributed.tensor import Shard

    even = [dim for dim, size in enumerate(parameter.shape) if size % processes == 0]
    return Shard(even[0] if even else 0)


def _check_torch() -> None:
    """Refuse a torch whose ``fully_shard`` cannot leave parameters out.

    Raises:
        ValueError: naming its version.
    """
    try:
        from torch.distributed.fsdp import fully_shard

        fits = "ignored_params" in inspect.signature(fully_shard).parameters
    except ImportError:
        fits = False
    if not fits:
        raise ValueError(
            f"SnellaFullyShard needs torch 2.7 or later, not {torch.__version__}: update torch, or "
            "use MMDistributedDataParallel"
        )

"""Launches of a training step of a ViT block on a GPU: ``python benchmarks/launches.py``.

No GPU is needed: the kernels run in Triton's interpreter, in small; how many there are does not
depend on sizes. Operators of torch that work on something count as one launch each.
"""

import os

if __name__ == "__main__":  # before Triton is imported
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import collections
from contextlib import ExitStack
from types import FunctionType
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from snella_seg.engine import DeltaBlock
from snella_seg.engine.gpu import group, launch
from snella_seg.inject import add_adapters

#: Rows: options of the adapters; none for a frozen block.
METHODS = {
    "snella": dict(rank=32, initial_sparsity=0.9),
    "snella_v2": dict(rank=32, initial_sparsity=0.9, kernel="centred", sparsifier="normalised"),
    "snell": dict(rank=32, initial_sparsity=0.9, kernel="distance", sparsifier="soft"),
    "LoRA of ours": dict(rank=32, kernel="linear", sparsifier="none"),
    "frozen": {},
}
#: Operators that launch nothing: views, and memory that nothing is written to.
IDLE = {
    "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "expand", "permute",
    "select", "slice", "split", "split_with_sizes", "t", "transpose", "unbind", "unfold",
    "unsqueeze", "view",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts, while it is in force, Triton kernels and operators of torch by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: collections.Counter[str] = collections.Counter()
        self.operators: collections.Counter[str] = collections.Counter()
        self._stack, self._within = ExitStack(), False

    def __enter__(self) -> "Launches":
        for module in (group, launch):
            for name, kernel in list(vars(module).items()):
                if name.endswith("_kernel") and not isinstance(kernel, FunctionType):
                    counted = _Counted(self, name, kernel)
                    self._stack.enter_context(mock.patch.object(module, name, counted))
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in IDLE and not self._within:
            self.operators[name] += 1
        return function(*args, **(kwargs or {}))


class _Counted:
    """A kernel in the place of the one that it counts; the interpreter's own work is not ours."""

    def __init__(self, seen: Launches, name: str, kernel) -> None:
        self.seen, self.name, self.kernel = seen, name, kernel

    def __getitem__(self, grid):
        def start(*args, **options):
            self.seen.kernels[self.name] += 1
            self.seen._within = True
            try:
                return self.kernel[grid](*args, **options)
            finally:
                self.seen._within = False

        return start


def of_a_step(**adapter) -> Launches:
    """Of forward and backward through a ViT block with gradients by its input."""
    from timm.models.vision_transformer import Block

    torch.manual_seed(0)
    block = Block(32, 2, qkv_bias=True).requires_grad_(False).train()
    if adapter:
        add_adapters(block, adapter, ["*"])
    x = torch.randn(2, 9, 32, requires_grad=True)
    seed = torch.randn(2, 9, 32)
    block(x).backward(seed)
    block.zero_grad()
    x.grad = None
    with Launches() as seen:
        block(x).backward(seed)
    return seen


def main() -> None:
    print("| | by Triton | by torch | all |\n|---|---:|---:|---:|")
    for name, options in METHODS.items():
        with mock.patch.object(DeltaBlock, "by_triton", options.get("kernel") != "linear"):
            seen = of_a_step(**options)
        kernels, operators = seen.kernels.total(), seen.operators.total()
        print(f"| {name} | {kernels} | {operators} | {kernels + operators} |")


if __name__ == "__main__":
    main()

"""Measuring in what tiles the Triton kernels are fastest on a GPU."""

import math
from collections.abc import Callable

import torch

from ..engine.gpu import launch_backwards, launch_deltas
from ..engine.gpu.group import kind_of
from ..engine.gpu.tiling import CHOICES, Tile, Tiling, tiling_key, trying, write_down
from ..engine.self_check import example
from ..functional import DeltaRule

#: Of the matrices that are timed: q, k and v of ViT-B's attention.
COUNT, SHAPE, SPARSITY = 3, (768, 768), 0.9
#: By which share of its time another tile has to be faster than the default.
MARGIN = 0.03


def step_time(device: torch.device, rule: DeltaRule) -> float:
    """Median time on the device, in ms, of making deltas and of their gradients, with the merged
    weight; as a CUDA graph, or launching would take longer."""
    import triton

    params, grad = example(rule, SHAPE, device)
    group, grads = [params] * COUNT, grad.expand(COUNT, *SHAPE).contiguous()
    base, out = torch.zeros_like(grads), torch.empty_like(grads)

    def step() -> None:
        _, states = launch_deltas(group, rule, [SPARSITY] * COUNT, base, out)
        launch_backwards(group, rule, states, grads, None, base, out)

    with torch.cuda.device_of(base):
        return triton.testing.do_bench_cudagraph(step, return_mode="median")


def tune(
    device: torch.device,
    rule: DeltaRule,
    time: Callable[[torch.device, DeltaRule], float] = step_time,
) -> str:
    """Try each tile on a device and write down the fastest, which later processes take.

    Returns:
        What was chosen, and what each tile took.
    """
    chosen, tried = {}, []
    for name, tiles in CHOICES.items():
        times: dict[Tile, float] = {}
        for tile in tiles:
            try:
                with trying(Tiling(**{**chosen, name: tile})):
                    times[tile] = time(device, rule)
            except Exception as error:  # of whatever kind: a compiler's, too little shared memory
                tried.append(f"{name} {tile} {type(error).__name__}")
            else:
                tried.append(f"{name} {tile} {times[tile]:.3f} ms")
        chosen[name] = _fastest(times, tiles[0])
    write_down(tiling_key(device, kind_of(rule)), Tiling(**chosen))
    return f"{Tiling(**chosen)} ({', '.join(tried)})"


def _fastest(times: dict[Tile, float], default: Tile) -> Tile:
    """The default, unless another takes less time by more than :data:`MARGIN`."""
    best = min(times, key=times.__getitem__, default=default)
    return best if times.get(best, 0.0) < (1 - MARGIN) * times.get(default, math.inf) else default

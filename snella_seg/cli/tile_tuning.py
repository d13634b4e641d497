"""Measuring in what tiles the Triton kernels are fastest on a GPU."""

from collections.abc import Callable

import torch

from ..engine.gpu import launch_backwards, launch_deltas
from ..engine.gpu.group import kind_of
from ..engine.gpu.tiling import CHOICES, Tile, Tiling, tiling_key, trying, write_down
from ..engine.self_check import example
from ..functional import DeltaRule

#: Of the matrices that are timed: q, k and v of ViT-B's attention.
COUNT, SHAPE, SPARSITY = 3, (768, 768), 0.9


def step_time(device: torch.device, rule: DeltaRule) -> float:
    """Median time, in ms, of making deltas and of their gradients, with the merged weight."""
    import triton

    params, grad = example(rule, SHAPE, device)
    group, grads = [params] * COUNT, grad.expand(COUNT, *SHAPE).contiguous()
    base, out = torch.zeros_like(grads), torch.empty_like(grads)

    def step() -> None:
        _, states = launch_deltas(group, rule, [SPARSITY] * COUNT, base, out)
        launch_backwards(group, rule, states, grads, None, base, out)

    return triton.testing.do_bench(step, return_mode="median")


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
        chosen[name] = min(times, key=times.__getitem__) if times else tiles[0]
    write_down(tiling_key(device, kind_of(rule)), Tiling(**chosen))
    return f"{Tiling(**chosen)} ({', '.join(tried)})"

"""How time, saved bytes and peak memory of a training step are measured."""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

#: A timing covers as many steps as fit into this many seconds, at most INNER_STEPS.
INNER_SECONDS, INNER_STEPS = 0.01, 20
#: No further warm-up step begins after this many seconds.
WARMUP_SECONDS = 5.0


@dataclass
class Case:
    """One variant in one setting, ready to run.

    A step is ``backward(forward())``, then ``finish()``, which drops the gradients (and, for whole
    models, steps the optimizer before).

    Args:
        key, label: of the row.
        forward: runs the forward pass and returns what ``backward`` takes.
        backward: runs the backward pass.
        finish: ends the step.
        modules: whose parameters and buffers do not count as saved.
        inputs: tensors that do not count as saved either.
        facts: more figures for the row.
    """

    key: str
    label: str
    forward: Callable
    backward: Callable
    finish: Callable
    modules: list[nn.Module]
    inputs: list[Tensor]
    facts: dict = field(default_factory=dict)

    def step(self) -> None:
        self.backward(self.forward())
        self.finish()


def autocast(device: torch.device, dtype: str):
    """The context in which forward passes run: nothing, or bfloat16 autocast."""
    if dtype == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address -> bytes of the storages of tensors, each once."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return found


def module_tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Parameters and buffers of all modules."""
    return [t for m in modules for t in (*m.parameters(), *m.buffers())]


def saved_bytes(case: Case) -> int:
    """Bytes that a forward pass saves for backward: each storage once.

    Parameters and buffers of the model and its inputs exist anyway and are not counted.
    """
    known = storages([*module_tensors(case.modules), *case.inputs])
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage  # kept, so that no address is used twice
        return tensor.detach()  # the tensor itself would make a cycle with its graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = case.forward()
    total = sum(storage.nbytes() for storage in saved.values())
    del outputs
    return total


def peak_bytes(case: Case, device: torch.device) -> tuple[int, int]:
    """Peak of one step, and what is held between forward and backward, over the step's start.

    On a GPU these are the caching allocator's figures. On a CPU all allocations of one step are
    recorded by ``torch.profiler`` and replayed; what libraries allocate on their own (oneDNN's
    scratch space, numpy) is not in it. Gradients of parameters are in the peak, optimizer state
    and weights are not.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        outputs = case.forward()
        held = torch.cuda.memory_allocated() - start
        case.backward(outputs)
        del outputs
        case.finish()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - start, held
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        outputs = case.forward()
        with torch.profiler.record_function("benchmark: backward"):
            case.backward(outputs)
        del outputs
        case.finish()
    live = peak = held = 0
    events = profiler.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
        elif event.name() == "benchmark: backward":
            held = live
    return peak, held


def measure(
    cases: list[Case],
    rounds: int,
    device: torch.device,
    warmup: int = 3,
    log: Callable[[str], None] = print,
) -> list[dict]:
    """Measure all cases, their timed steps interleaved: one of each per round, in turning order.

    Returns one row per case: median and quartiles of the milliseconds a step takes, all of them as
    ``times``, and bytes. A case that fails gives a row with ``error``.
    """
    rows = [{"key": case.key, "label": case.label, **case.facts} for case in cases]
    running = []
    for case, row in zip(cases, rows, strict=True):
        try:
            row["saved"] = saved_bytes(case)
            _warm_up(case, warmup)
            row["peak"], row["held"] = peak_bytes(case, device)
            started = time.perf_counter()
            if warmup:
                _timed(case, 1, device)
            once = time.perf_counter() - started if warmup else INNER_SECONDS
            running.append((case, row, min(INNER_STEPS, max(1, int(INNER_SECONDS / once)))))
            row["times"] = []
        except RuntimeError as error:  # out of memory, a refused shape
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            case.finish()
        log(f"  {case.label}: " + (row.get("error") or _mib(row)))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    gc.disable()
    try:
        for number in range(rounds):
            turn = number % max(len(running), 1)
            for case, row, inner in running[turn:] + running[:turn]:
                row["times"].append(_timed(case, inner, device))
            gc.collect()
    finally:
        gc.enable()
    for _, row, _ in running:
        _summarise(row)
    return rows


def _warm_up(case: Case, steps: int) -> None:
    """Run so many steps, or fewer where they take long."""
    started = time.perf_counter()
    for _ in range(steps):
        case.step()
        if time.perf_counter() - started > WARMUP_SECONDS:
            break


def _timed(case: Case, inner: int, device: torch.device) -> float:
    """Milliseconds per step, over ``inner`` steps."""
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(inner):
        case.step()
    _synchronize(device)
    return (time.perf_counter() - started) / inner * 1e3


def time_call(call: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Median milliseconds of a call, after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        _synchronize(device)
        started = time.perf_counter()
        call()
        _synchronize(device)
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _summarise(row: dict) -> None:
    times = row["times"]
    row["ms"] = statistics.median(times)
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times
    row["ms_low"], row["ms_high"] = quartiles[0], quartiles[-1]


#: Key of a column -> the row to which it relates times, the first that there is.
RELATIONS = {
    "ratio": ("reference",),
    "over_lora": ("lora",),
    "over_full": ("full_sdpa", "full"),
}


def compare(rows: list[dict]) -> None:
    """Add the time relative to some of the rows: medians of the ratios within each round."""
    by_key = {row["key"]: row for row in rows if row.get("times")}
    for row in by_key.values():
        for column, keys in RELATIONS.items():
            to = next((key for key in keys if key in by_key), None)
            if to is not None:
                row[column] = _ratio(row["times"], by_key[to]["times"])
        if "frozen" in by_key:
            row["over_frozen"] = 100 * (_ratio(row["times"], by_key["frozen"]["times"]) - 1)


def _ratio(times: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def _mib(row: dict) -> str:
    return ", ".join(f"{name} {row[name] / 2**20:.1f} MiB" for name in ("saved", "held", "peak"))

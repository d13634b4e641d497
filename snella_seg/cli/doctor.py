"""See whether deltas are made right on this machine, and by what: a table to paste into an issue.

Deltas of each method and their gradients are compared with their definition, on the CPU and on
each GPU. The exit status is 1 where something differs.
"""

import argparse
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path as FilePath

import torch
from torch import Tensor

from ..engine import DeltaBlock, merge_deltas
from ..engine import gpu as on_gpu
from ..engine.blocks import MadeBlock, makers
from ..engine.self_check import Path, disagreement, example, native_finding, triton_reason
from ..engine.stack import product_backward
from ..functional import DeltaRule
from ..inject import METHODS
from ..layers import SnellaAdapter
from ..version import __version__
from .failures import plain_errors
from .tile_tuning import tune

#: Distributions whose versions are told: torch's and both families of the OpenMMLab packages.
PACKAGES = (
    "torch", "triton", "numpy", "timm", "onedl-mmengine", "onedl-mmcv",
    "onedl-mmsegmentation", "mmengine", "mmcv", "mmsegmentation",
)  # fmt: skip
GPU_TESTS = ("tests/engine/gpu", "tests/engine/test_self_check.py")
#: What is looked at, what came of it, and whether that is as it should be.
Finding = tuple[str, str, bool]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", action="store_true", help="run the tests of the GPU path, too")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="measure in what tiles the kernels are fastest on each kind of GPU here, for later "
        "runs to use; a minute or two",
    )
    return parser.parse_args(argv)


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    findings = [*machine(), *engine()]
    if args.tune:
        findings += tuned()
    if args.tests:
        findings.append(run_tests())
    print(table(findings))
    if not all(right for *_, right in findings):
        sys.exit(1)


def table(findings: Sequence[Finding]) -> str:
    """Findings as a Markdown table."""
    rows = [f"| {what} | {'' if right else 'FAILED: '}{found} |" for what, found, right in findings]
    return "\n".join(["| what | found |", "|---|---|", *rows])


def machine() -> Iterator[Finding]:
    """Versions and devices."""
    yield "system", f"{platform.platform()}, Python {platform.python_version()}", True
    versions = [f"snella_seg {__version__}", *filter(None, map(_version, PACKAGES))]
    yield "packages", ", ".join(versions), True
    cpu = platform.processor() or platform.machine()
    yield "CPU", f"{cpu}, {torch.get_num_threads()} threads", True
    yield "distance kernels on cpu", *native_finding()
    for device in devices()[1:]:
        found = torch.cuda.get_device_properties(device)
        runtime = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}"
        about = f"{found.name}, capability {found.major}.{found.minor}, "
        yield str(device), about + f"{found.total_memory / 2**30:.0f} GiB, {runtime}", True


def _version(package: str) -> str | None:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return None


def devices() -> list[torch.device]:
    """The CPU, then all GPUs."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(count))]


def rules() -> dict[str, DeltaRule]:
    """Method -> how it makes its deltas, where by a rule."""
    own = {n: m for n, m in METHODS.items() if m.adapts and m.adapter_class is SnellaAdapter}
    found = {}
    for name, method in own.items():
        options, known = {**method.defaults, **method.fixed}, {f.name for f in fields(DeltaRule)}
        found[name] = DeltaRule(**{k: v for k, v in options.items() if k in known})
    return found


def engine() -> Iterator[Finding]:
    """Per device and method, what makes its deltas and whether they are what is defined.

    Where Triton's kernels could serve and do not, that is a failure, though training is right.
    """
    for device in devices():
        for name, rule in rules().items():
            maker = path_of(rule, device)
            wrong = disagreement(ENGINE, rule, device)
            if wrong is None and device.type == "cuda" and on_gpu.knows(rule):
                usable = on_gpu.available(device)
                wrong = triton_reason(rule, device) if usable else None
                maker += "" if usable else " (no Triton, or a GPU older than capability 8.0)"
            found = f"{maker}, as defined" if wrong is None else f"{maker}: {wrong}"
            yield f"{name} on {device}", found, wrong is None


def path_of(rule: DeltaRule, device: torch.device) -> str:
    """What makes the deltas of a rule on a device."""
    params, _ = example(rule, (33, 17), device)
    return makers([DeltaBlock(0, 33, rule, 0.5, params)])[0].value


def _make(
    params: tuple[Tensor, ...], rule: DeltaRule, sparsity: float, base: Tensor
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    made, (state,) = merge_deltas(
        base, base.shape, [DeltaBlock(0, len(base), rule, sparsity, params)]
    )
    return made, state


def _backward(
    params: tuple[Tensor, ...],
    rule: DeltaRule,
    state: tuple[Tensor | None, ...],
    grad: Tensor,
    base: Tensor,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    block = MadeBlock(DeltaBlock(0, len(base), rule, 0.0, params), state, (True,) * len(params))
    one = torch.eye(len(base), device=base.device)  # then x^T g is g, and g W is W
    merged, grads = product_backward(grad, one, base, (*base.shape,), [block], 1.0, True)
    assert merged is not None
    return merged, tuple(grads)


#: Whatever makes deltas where they are.
ENGINE = Path(_make, _backward)


def tuned() -> Iterator[Finding]:
    """Choose tiles on each kind of GPU; what was chosen, and out of what."""
    by_name: dict[str, torch.device] = {}
    for device in devices()[1:]:
        by_name.setdefault(torch.cuda.get_device_name(device), device)
    if not by_name:
        yield "tiles", "nothing to choose: no GPU", True
    for name, device in by_name.items():
        for method, rule in rules().items():
            if on_gpu.knows(rule) and on_gpu.available(device):
                yield f"tiles of {method} on {name}", tune(device, rule), True


def run_tests() -> Finding:
    """The tests of the GPU path, as far as this is a checkout."""
    root = FilePath(__file__).parents[2]
    files = [str(root / name) for name in GPU_TESTS]
    if not all(map(FilePath.exists, map(FilePath, files))):
        return "tests", "not in this installation; run doctor in a checkout", False
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
    if done.returncode:
        print(done.stdout[-20000:], file=sys.stderr)
    return "tests", lines[-1].strip("= "), done.returncode == 0

"""Checks of the GPU path that no test makes: ``python benchmarks/gpu_checks.py CHECK``.

Each prints what it found and ends with status 1 where that is wrong. ``--dry-run`` runs in Triton's
interpreter (TRITON_INTERPRET=1) on the CPU, in small; what needs a GPU then says so.
"""

import argparse
import collections
import sys

import torch
from torch import nn

from snella_seg.engine import gpu
from snella_seg.engine.gpu import delta_kernels, gradient_kernels, language
from snella_seg.engine.self_check import example
from snella_seg.functional import DeltaRule
from snella_seg.inject import add_adapters

RULES = (DeltaRule(), DeltaRule("centred", "normalised"), DeltaRule("distance", "soft"))
GPU_ONLY = ("stream", "waits", "launches", "spills", "index")


class Check:
    """One run: where, how large, and one method per check."""

    def __init__(self, dry: bool) -> None:
        self.dry, self.device = dry, torch.device("cpu" if dry else "cuda")

    def draw(self, rule: DeltaRule, seed: int, shape: tuple[int, int]):
        """Other parameters and another gradient for each seed."""
        params, grad = example(rule, shape, self.device)
        generator = torch.Generator().manual_seed(seed)
        scale = 0.5 + float(torch.rand((), generator=generator))
        params = tuple(
            torch.randn(p.shape, generator=generator).to(p) * scale if p.ndim == 3 else p
            for p in params
        )
        return params, torch.randn(grad.shape, generator=generator).to(grad)

    def masks(self) -> None:
        """The same bits in forward and backward, and no gradient beside the mask."""
        draws = 2 if self.dry else 1000
        for rule in RULES:
            for seed in range(draws):
                shape = (130, 70) if seed % 2 == 0 else (64, 96)
                params, grad = self.draw(rule, seed, shape)
                delta, state = gpu.launch_delta(params, rule, 0.7)
                again = torch.empty_like(delta)
                gpu.launch_backward(params, rule, state, grad, out=again)
                require(torch.equal(delta, again), f"{rule}, draw {seed}: other bits in backward")
                beside = (delta == 0).float()
                grads = gpu.launch_backward(params, rule, state, beside)
                moved = any(bool(g.any()) for g in grads if g is not None)
                require(not moved, f"{rule}, draw {seed}: a gradient beside the mask")
            print(f"{rule}: {draws} draws agree")

    def bits(self) -> None:
        """The same bits twice."""
        shape = (70, 40) if self.dry else (3072, 768)
        for rule in RULES:
            params, grad = self.draw(rule, 0, shape)
            first, second = (self._all(params, rule, grad) for _ in range(2))
            same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            require(same, f"{rule}: other bits at the second time")
            print(f"{rule}: the same bits twice")

    def _all(self, params, rule, grad):
        delta, state = gpu.launch_delta(params, rule, 0.9)
        return [delta, *state, *gpu.launch_backward(params, rule, state, grad)]

    def stream(self) -> None:
        """The same bits on a stream of one's own as on the default one."""
        for rule in RULES:
            params, grad = self.draw(rule, 0, (768, 768))
            expected = self._all(params, rule, grad)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                found = self._all(params, rule, grad)
            side.synchronize()
            same = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            require(same, f"{rule}: other bits on a side stream")
            print(f"{rule}: the same bits on a side stream")

    def waits(self) -> None:
        """Nothing waits for the device, and a CUDA graph can hold it."""
        for rule in RULES:
            params, grad = self.draw(rule, 0, (768, 768))
            expected = self._all(params, rule, grad)
            torch.cuda.set_sync_debug_mode("error")
            try:
                self._all(params, rule, grad)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = self._all(params, rule, grad)
            graph.replay()
            torch.cuda.synchronize()
            same = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            require(same, f"{rule}: other bits from a CUDA graph")
            print(f"{rule}: nothing waits, and a CUDA graph repeats it")

    def launches(self) -> None:
        """Kernels that a training step of four layers of a ViT-B block launches, by name."""
        for name, options in (("snella", SPARSE), ("snella_v2", V2), ("lora", LORA)):
            layers = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
            model = nn.ModuleList(nn.Linear(*shape) for shape in layers).requires_grad_(False)
            add_adapters(model, dict(rank=32, **options), ["*"])
            model.to(self.device)
            inputs = [
                torch.randn(1025, i, device=self.device, requires_grad=True) for i, _ in layers
            ]

            def step(model=model, inputs=inputs):
                for layer, x in zip(model, inputs, strict=True):
                    layer(x).sum().backward()

            step()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                step()
                torch.cuda.synchronize()
            counts: collections.Counter[str] = collections.Counter()
            times: collections.Counter[str] = collections.Counter()
            for event in seen.events():
                if event.device_type == torch.autograd.DeviceType.CUDA:
                    counts[event.name] += 1
                    times[event.name] += event.time_range.elapsed_us()
            require(sum(counts.values()) > 0, "the profiler saw no kernel")
            print(f"{name}: {sum(counts.values())} kernels, {sum(times.values()) / 1e3:.2f} ms")
            for kernel, spent in times.most_common(12):
                print(f"  {counts[kernel]:5d} x {spent / 1e3:8.3f} ms  {kernel[:80]}")

    def spills(self) -> None:
        """Registers and spilled bytes of each kernel that was built."""
        for rule in RULES:
            params, grad = self.draw(rule, 0, (768, 768))
            self._all(params, rule, grad)
        lines, found = 0, {}
        for module in (language, delta_kernels, gradient_kernels):
            found |= vars(module)
        for name, kernel in found.items():
            for caches in getattr(kernel, "device_caches", {}).values():
                for built in caches[0].values() if name.endswith("_kernel") else ():
                    built._init_handles()
                    shared = getattr(built.metadata, "shared", "?")
                    print(f"{name}: {built.n_regs} registers, {built.n_spills} spills, {shared} B")
                    lines += 1
        require(lines > 0, "this Triton does not tell of its kernels")

    def index(self) -> None:
        """A matrix of 50,000 x 50,000: 2.5e9 entries, more than 32 bits can count."""
        shape, free = (50_000, 50_000), torch.cuda.mem_get_info()[0]
        need = 4 * 3.2 * shape[0] * shape[1]
        if free < need:
            print(f"skipped: needs {need / 2**30:.0f} GiB free, there are {free / 2**30:.0f}")
            return
        rule = DeltaRule("centred", "normalised")
        generator = torch.Generator().manual_seed(0)
        params = tuple(torch.randn(2, n, 4, generator=generator).cuda() for n in reversed(shape))
        delta, state = gpu.launch_delta(params, rule, 0.9)
        kept = sum(int((rows != 0).sum()) for rows in delta.split(2048))
        share = kept / delta.numel()
        require(abs(share - 0.1) < 1e-4, f"{share:.5f} of the entries take part, not 0.1")
        again = torch.empty_like(delta)
        grads = gpu.launch_backward(params, rule, state, delta, out=again)
        require(torch.equal(delta, again), "other bits in backward")
        finite = all(bool(g.isfinite().all()) for g in grads if g is not None)
        require(finite and bool(grads[1][:, -64:].any()), "gradients of the last rows are missing")
        print(f"{shape[0]} x {shape[1]}: {share:.5f} take part, the same bits in backward")


SPARSE = dict(initial_sparsity=0.9)
V2 = dict(kernel="centred", sparsifier="normalised", **SPARSE)
LORA = dict(kernel="linear", sparsifier="none")
CHECKS = ("masks", "bits", *GPU_ONLY)


def require(right: bool, message: str) -> None:
    if not right:
        sys.exit(f"WRONG: {message}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, in small")
    args = parser.parse_args()
    if args.dry_run and args.check in GPU_ONLY:
        print("skipped: needs a GPU")
        return
    device = torch.device("cpu" if args.dry_run else "cuda")
    if not gpu.available(device):
        sys.exit(f"error: Triton cannot run on {device}; --dry-run needs TRITON_INTERPRET=1")
    getattr(Check(args.dry_run), args.check)()


if __name__ == "__main__":
    main()

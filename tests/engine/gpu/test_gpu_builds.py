"""Without a GPU: the kernels compile for some, and their tests pass in Triton's interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_matrices import needs_compiler

from snella_seg.engine.gpu import delta_kernels, gradient_kernels, language
from snella_seg.engine.gpu.gradient_kernels import factors_kernel, sums_kernel
from snella_seg.engine.gpu.language import triton
from snella_seg.engine.gpu.tiling import CHOICES

KERNELS = {
    kernel
    for module in (language, delta_kernels, gradient_kernels)
    for name, kernel in vars(module).items()
    if name.endswith("_kernel")
}


@needs_compiler
def test_in_the_interpreter():
    """In a process of its own, since Triton chooses its interpreter when it is imported."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    files = (here, here.with_name("test_self_check.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50


CONSTANTS = {
    **{"HEADS": 2, "COLUMNS": 16, "RANK": 16, "KIND": "mixed", "MODE": "weighted", "DIGIT": 1},
    **{"RELATIVE": False, "BASE": True, "WRITE": True, "SEARCH": True, "BLOCK": 128, "WIDTH": 16},
    **{"BLOCK_OUT": 64, "BLOCK_IN": 32, "BLOCK_COLUMNS": 16, "NEAR": 1 / 32},
}
OTHERS = {
    **{"HEADS": 1, "COLUMNS": 4, "RANK": 1, "WIDTH": 4, "DIGIT": 3, "SEARCH": False},
    **{"KIND": "distance", "MODE": "soft", "BASE": False},
}
TYPES = {"search_ptr": "*i64", **dict.fromkeys(("scale", "amount", "fraction"), "fp32")}
V2 = CONSTANTS | {"KIND": "centred", "RELATIVE": True}
ONES = ("ins", "dense_stride", "grad_stride", "tiles", "tiles_out")
#: Sides and strides of most models: multiples of 16.
ALIGNED = ("outs", "ins", "dense_stride", "grad_stride", "base_stride", "out_stride")
#: What differs between builds: nothing; the other branch of each choice; Triton's own special case
#: of a size or stride of 1; half-precision matrices with an order statistic above 2**31.
BUILDS = {
    "usual": (CONSTANTS, TYPES),
    "other": (CONSTANTS | OTHERS, TYPES),
    "v2": (V2, TYPES),
    "one": (CONSTANTS | dict.fromkeys(ONES, 1), TYPES),
    "half": (
        CONSTANTS | {"MODE": "hard"},
        TYPES
        | dict.fromkeys(("base_ptr", "out_ptr", "p_ptr", "q_ptr", "alpha_ptr"), "*bf16")
        | {"grad_ptr": "*fp16", "rank": "i64"},
    ),
}


def build(kernel, constants, types, capability=80, warps=4, aligned=()):
    """A kernel as it is compiled for a GPU that need not be here."""
    signature = {
        name: "constexpr"
        if name in constants
        else types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }
    chosen = {name: constants[name] for name in kernel.arg_names if name in constants}
    places = [i for i, name in enumerate(kernel.arg_names) if name in aligned]
    attributes = {(i,): [["tt.divisibility", 16]] for i in places}
    return pytest.importorskip("triton.compiler").compile(
        triton.compiler.ASTSource(
            fn=kernel, signature=signature, constexprs=chosen, attrs=attributes
        ),
        target=pytest.importorskip("triton.backends.compiler").GPUTarget("cuda", capability, 32),
        options={"enable_fp_fusion": False, "num_warps": warps},
    )


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas").exists():
        pytest.skip("needs the ptxas that comes with Triton")


@needs_compiler
@pytest.mark.parametrize(
    "name, capability", [*((b, 80) for b in BUILDS), ("usual", 90), ("v2", 90)]
)
def test_kernels_compile_for_gpus(name, capability, compiler):
    kernels = list(KERNELS)
    assert len(kernels) == 12
    for kernel in kernels:
        pointers = [n for n in kernel.arg_names if n.endswith("_ptr")]
        aligned = [*ALIGNED, *pointers] if name == "v2" else ()
        compiled = build(kernel, *BUILDS[name], capability, aligned=aligned)
        assert len(compiled.asm["cubin"]) > 0
        assert not re.search(r"(atom|red)\.[^\n]*\.f(16|32|64)", compiled.asm["ptx"])


@needs_compiler
@pytest.mark.parametrize("name", CHOICES)
def test_every_tile_to_choose_from_compiles(name, compiler):
    kernel = {"entries": sums_kernel, "factors": factors_kernel}[name]
    for tile in CHOICES[name]:
        sizes = {"BLOCK_OUT": tile.outs, "BLOCK_IN": tile.ins}
        assert len(build(kernel, V2 | sizes, TYPES, 90, tile.warps).asm["cubin"]) > 0

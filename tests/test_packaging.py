"""The wheel carries configs and tools; without the OpenMMLab packages errors name the extra."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command, cwd: Path, **env) -> subprocess.CompletedProcess:
    """Run ``python ...`` in another folder."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in env.items()}},
        timeout=300,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel, built without the network from a copy of what the checkout tracks."""
    for tool in ("pip", "setuptools"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"needs {tool} to build a wheel without the network")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("snella_seg", "configs", "tools"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for file in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", target)
    done = run("-m", "pip", "wheel", source, *options, cwd=target)
    assert done.returncode == 0, done.stderr
    return next(target.glob("snella_seg-*.whl"))


def test_wheel_holds_package_configs_and_tools(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    package = [*ROOT.glob("snella_seg/**/*.py"), *ROOT.glob("snella_seg/lab/templates/*")]
    for path in [*package, *ROOT.glob("snella_seg/**/*.c"), ROOT / "snella_seg/py.typed"]:
        assert path.relative_to(ROOT).as_posix() in held
    for folder in ("configs", "tools"):
        for path in ROOT.glob(f"{folder}/**/*.py"):
            assert f"snella_seg/.mim/{path.relative_to(ROOT).as_posix()}" in held
    assert not [name for name in held if name.startswith(("tests", "configs", "tools"))]


def test_wheel_names_its_extras(wheel):
    names = zipfile.ZipFile(wheel)
    metadata = next(name for name in names.namelist() if name.endswith("METADATA"))
    lines = names.read(metadata).decode().splitlines()
    required = [line for line in lines if line.startswith("Requires-Dist")]
    plain = {line.split()[1].partition(">")[0] for line in required if "extra" not in line}
    # Nothing more: pip must not replace the OpenMMLab packages of a user.
    assert plain == {"torch", "numpy", "safetensors"}
    for package in ("onedl-mmsegmentation", "timm", "jinja2", "matplotlib", "scipy"):
        lines_of = [line for line in required if line.split()[1].startswith(package)]
        assert any('extra == "mm"' in line for line in lines_of), package
    scripts = next(name for name in names.namelist() if name.endswith("entry_points.txt"))
    assert "snella-seg = snella_seg.cli:main" in names.read(scripts).decode()


def test_unpacked_wheel_finds_its_own_configs(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = """
import snella_seg
from mmengine.config import Config

path, = snella_seg.own('snella_upernet_swin_ade20k.py')
print(path)
print(Config.fromfile(path).model.backbone.type)
"""
    done = run("-c", code, cwd=tmp_path, PYTHONPATH=site)
    path = site / "snella_seg/.mim/configs/snella_upernet_swin_ade20k.py"
    assert done.stdout.split() == [str(path), "SnellaBackbone"], done.stderr


@pytest.fixture
def without_mm(tmp_path) -> Path:
    """A folder for PYTHONPATH in which mmengine, mmcv and mmseg are not to be found."""
    (tmp_path / "sitecustomize.py").write_text("""
import importlib.machinery
import sys
import sysconfig
import venv

find_spec = importlib.machinery.PathFinder.find_spec


class WithoutMM(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition('.')[0] in ('mmengine', 'mmcv', 'mmseg'):
            return None
        return find_spec(name, path, target)


sys.meta_path[:] = [
    WithoutMM if f is importlib.machinery.PathFinder else f for f in sys.meta_path
]
""")
    return tmp_path


def test_the_method_works_without_mm_packages(without_mm):
    code = """
import importlib.util
assert importlib.util.find_spec('mmseg') is None
import sys, torch
from snella_seg.functional import distance_kernel
from snella_seg.inject import add_adapters
import snella_seg.layers, snella_seg.engine, snella_seg.budget
assert not {'mmengine', 'mmcv', 'mmseg', 'timm'} & set(sys.modules)
print(len(add_adapters(torch.nn.Sequential(torch.nn.Linear(4, 4)), targets=['0'])))
"""
    done = run("-c", code, cwd=without_mm, PYTHONPATH=f"{without_mm}{os.pathsep}{ROOT}")
    assert done.stdout.split() == ["1"], done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("-c", "import snella_seg.register"),
        ("-c", "import snella_seg; snella_seg.stock('_base_/default_runtime.py')"),
        (ROOT / "tools/train.py", "config.py"),
        (ROOT / "tools/test.py", "config.py", "checkpoint.pth"),
    ],
    ids=["register", "stock", "train", "test"],
)
def test_missing_mm_packages_are_named_with_the_extra(command, without_mm):
    done = run(*command, cwd=without_mm, PYTHONPATH=f"{without_mm}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert "pip install 'snella_seg[mm]'" in lines[-1]
    if command[0] != "-c":
        assert len(lines) == 1 and lines[0].startswith("error: ")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel, and with all of this one but the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    done = run("-m", "pip", "--python", folder, "install", *options, wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    # Of a folder that is named in a .pth file, Python does not read such files: a checkout's.
    site = next(folder.glob("lib/*/site-packages"))
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


DEMO_ELSEWHERE = """
_base_ = __import__("snella_seg").own("snella_upernet_demo.py")
prepare = None
model = dict(backbone=dict(init_cfg=None))
data = dict(data_root={root!r}, img_suffix=".jpg")
train_dataloader = dict(batch_size=2, dataset=data)
val_dataloader = dict(dataset=data)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=4, val_interval=4)
custom_hooks = [dict(type="SparsityAllocationHook", target_sparsity=0.6)]
"""


@pytest.mark.skipif(os.name == "nt", reason="folders of an environment are named otherwise")
def test_main_job_from_the_wheel(installed, tiny_dataset, tmp_path):
    def command(name: str, *args) -> str:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        line = [str(installed / name), *map(str, args)]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    package = command("python", "-c", "import snella_seg; print(snella_seg.__file__)")
    assert Path(package.strip()).is_relative_to(installed.parent)
    assert "as defined" in command("snella-seg", "doctor")
    command("snella-seg", "new", tiny_dataset, "--out", "new.py")
    assert 'own("snella_upernet_ade20k.py")' in (tmp_path / "new.py").read_text()
    (tmp_path / "mine.py").write_text(DEMO_ELSEWHERE.format(root=tiny_dataset.as_posix()))
    command("snella-seg", "train", "mine.py")
    assert (tmp_path / "work_dirs/mine/iter_4.pth").is_file()
    command("snella-seg", "report", "work_dirs/mine")  # through templates of the package
    assert list((tmp_path / "work_dirs/mine").rglob("*.html"))

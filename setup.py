"""Packaging. ``pip install '.[mm]'`` brings the maintained OpenMMLab packages along."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
VERSION: dict[str, str] = {}
exec((ROOT / "snella_seg" / "version.py").read_text(), VERSION)


class BuildWithConfigs(build_py):
    """Also puts configs and tools into the package, where OpenMMLab packages have them (.mim)."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout has them beside the package
            return
        target = Path(self.build_lib) / "snella_seg" / ".mim"
        for folder in ("configs", "tools"):
            shutil.rmtree(target / folder, ignore_errors=True)
            shutil.copytree(
                ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__")
            )


setup(
    name="snella_seg",
    version=VERSION["__version__"],
    description="SNELLA: sparse nonlinear low-rank adaptation of ViT and Swin for segmentation",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["snella_seg", "snella_seg.*"]),
    cmdclass={"build_py": BuildWithConfigs},
    # The OpenMMLab packages come by an extra, so that pip never replaces a user's originals.
    install_requires=["torch>=2.1", "numpy", "safetensors>=0.4"],
    extras_require={
        "mm": [
            "onedl-mmengine>=0.10.12",
            "onedl-mmcv>=2.3.6",
            "onedl-mmsegmentation>=1.4.2",
            "timm>=1.0",
        ],
        "timm": ["timm>=1.0"],
        "bench": ["peft>=0.15", "matplotlib"],
        "test": ["pytest>=8", "hypothesis>=6", "ruff>=0.9", "peft>=0.15", "tensorboard"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)

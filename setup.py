"""Puts configs and tools into the package; all else about packaging is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies them to where OpenMMLab packages have theirs (.mim)."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout has them beside the package
            return
        root, target = Path(__file__).resolve().parent, Path(self.build_lib) / "snella_seg/.mim"
        for folder in ("configs", "tools"):
            shutil.rmtree(target / folder, ignore_errors=True)
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(root / folder, target / folder, ignore=ignored)


setup(cmdclass={"build_py": BuildWithConfigs})

"""Whether what we use of mmengine, mmcv and mmsegmentation is in the originals, too.

``python benchmarks/originals.py`` downloads their wheels (mmcv-lite: mmcv without its compiled
operators) and looks up in their sources, which it reads and never imports: names that we import,
attributes of these and of runners, what we call and override of their classes, keyword arguments,
registered types and stock configs that ours build on. Exits with 1 where something is missing.
"""

import argparse
import ast
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from sources import Missing, Sources, dotted, imported, parse

ROOT = Path(__file__).resolve().parents[1]
ORIGINALS = ("mmengine==0.10.*", "mmcv-lite==2.1.*", "mmsegmentation==1.2.*")
PACKAGES = ("mmengine", "mmcv", "mmseg")
#: Variables that hold one of their objects wherever they occur.
TYPED = {"runner": "mmengine.runner.Runner"}
#: A dotted path of theirs in a string, as ``'mmseg.models.backbones.swin:WindowMSA'``.
_PATH = re.compile(rf"({'|'.join(PACKAGES)})((\.\w+)+:\w+|(\.[a-z_]\w*)+)")


@dataclass(frozen=True)
class Use:
    """A dotted name that we rely on, the keyword arguments that we call it with, and where."""

    name: str
    where: str
    keywords: tuple[str, ...] = ()


class Reader(ast.NodeVisitor):
    """Gathers what a file of ours relies on, as ``found``."""

    def __init__(self, file: Path, root: Path) -> None:
        parts = file.relative_to(root).with_suffix("").parts
        self.file, self.root, self.module = file, root, ".".join(parts).removesuffix(".__init__")
        self.package = ".".join(parts[:-1])
        self.names, self.found = dict(TYPED), list[Use]()
        self.cls: ast.ClassDef | None = None
        tree = parse(file)
        for node in ast.walk(tree):  # imports in functions, too
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self.names |= imported(node, self.package)
        self.visit(tree)

    def add(self, name: str | None, node: ast.AST, keywords: tuple[str, ...] = ()) -> None:
        if name and name.startswith((*PACKAGES, str(self.inherits()))):
            where = f"{self.file.relative_to(self.root)}:{node.lineno}"
            self.found.append(Use(name, where, keywords))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for name in imported(node, self.package).values():
            self.add(name, node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outside, self.cls = self.cls, node
        bases = {dotted(base) for base in node.bases}
        for part in parse(self.file).body:  # a base of ours acts on what the others bring
            if part is node or isinstance(part, ast.ClassDef) and part.name in bases:
                self.generic_visit(part)
        self.cls = outside

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.add(self.absolute(node), node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        keywords = tuple(k.arg for k in node.keywords if k.arg)
        self.add(self.absolute(node.func), node, keywords)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and _PATH.fullmatch(node.value):
            self.add(node.value.replace(":", "."), node)

    def inherits(self) -> str | None:
        """The dotted path of the class that we are in, if it is made of one of theirs."""
        bases = [self.names.get(dotted(b), "") for b in self.cls.bases] if self.cls else []
        theirs = any(base.startswith(PACKAGES) for base in bases)
        at_top = self.cls in parse(self.file).body
        return f"{self.module}.{self.cls.name}" if theirs and at_top else None

    def absolute(self, node: ast.AST) -> str | None:
        """The dotted path of an expression that begins at an import, a runner, self or super()."""
        chain = dotted(node)
        if chain is None:
            return None
        first, _, rest = chain.removeprefix("self.runner.").partition(".")
        if chain.startswith("self.runner."):
            return f"{TYPED['runner']}.{first}"
        if first == "self" and rest and self.inherits():
            return f"{self.inherits()}.{rest.split('.')[0]}"
        if first == "super()" and self.cls and len(self.cls.bases) == 1:
            base = self.absolute(self.cls.bases[0])
            return f"{base}.{rest}" if base else None
        return self.names[first] + (f".{rest}" if rest else "") if first in self.names else None


def check(sources: Sources, use: Use) -> None:
    """Raise :class:`Missing` where a name is not there, or does not take what it is called with."""
    node = sources.find(use.name)
    if isinstance(node, ast.ClassDef) and use.keywords:
        node = sources.member(node, "__init__")[1]
    if isinstance(node, ast.FunctionDef) and node.args.kwarg is None:
        known = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
        if unknown := sorted(set(use.keywords) - known):
            raise Missing(f"no argument {', '.join(unknown)} of {use.name}")


def registered(folders: tuple[Path, ...]) -> set[str]:
    """Names of classes and functions that are registered, and names that are given to them."""
    found: set[str] = set()
    for file in (f for folder in folders for f in folder.rglob("*.py")):
        for node in ast.walk(parse(file)):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                if any("register_module" in ast.unparse(d) for d in node.decorator_list):
                    found.add(node.name)
            if isinstance(node, ast.Call) and "register_module" in ast.unparse(node.func):
                found |= {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                found |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return found


def types(file: Path) -> Iterator[tuple[str, int]]:
    """Registered types that a config names, with their lines."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Call) and dotted(node.func) == "dict":
            for k in node.keywords:
                if k.arg == "type" and isinstance(k.value, ast.Constant):
                    yield k.value.value, node.lineno


def stock_configs(file: Path) -> Iterator[tuple[str, int]]:
    """Configs of mmsegmentation that one of ours builds on, with their lines."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "stock":
            yield from ((a.value, node.lineno) for a in node.args if isinstance(a, ast.Constant))


def audit(root: Path, originals: Path) -> tuple[dict[str, int], list[str]]:
    """Look all uses up.

    Args:
        root: folder with our package ``snella_seg`` and ``configs``.
        originals: folder with theirs, unpacked.

    Returns:
        What was looked up, counted by kind, and a line for each that is missing.
    """
    sources = Sources((originals, root))
    ours = sorted((root / "snella_seg").rglob("*.py"))
    configs = sorted((root / "configs").rglob("*.py"))
    kinds = ("names", "attributes of classes made of theirs", "types", "stock configs")
    tried: dict[str, set[str]] = {kind: set() for kind in kinds}
    missing = []
    for use in (use for file in ours for use in Reader(file, root).found):
        try:
            check(sources, use)
            tried[kinds[not use.name.startswith(PACKAGES)]].add(use.name)
        except Missing as error:
            missing.append(f"{use.where}: {error}")
    known = registered((*(originals / p for p in PACKAGES), root / "snella_seg"))
    for file in (*ours, *configs):
        for name, line in types(file):
            tried["types"].add(name)
            if name not in known and not hasattr(torch.optim, name):
                missing.append(f"{file.relative_to(root)}:{line}: nothing registered as {name}")
        for name, line in stock_configs(file):
            tried["stock configs"].add(name)
            if not (originals / "mmseg/.mim/configs" / name).is_file():
                missing.append(f"{file.relative_to(root)}:{line}: no stock config {name}")
    return {kind: len(found) for kind, found in tried.items()}, sorted(set(missing))


def download(requirements: list[str], folder: Path) -> list[str]:
    """Unpack packages into a folder; returns their names and versions."""
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:")
    subprocess.run([*pip, "--dest", folder, *requirements], check=True)
    wheels = sorted(folder.glob("*.whl"))
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(folder)
    return [" ".join(wheel.name.split("-")[:2]) for wheel in wheels]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("requirements", nargs="*", default=ORIGINALS, help="for other versions")
    parser.add_argument("--folder", type=Path, help="keep them there instead of a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        print("in", ", ".join(download(args.requirements, folder)))
        counts, missing = audit(ROOT, folder)
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()), "looked up")
    print(*missing, f"{len(missing)} missing", sep="\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

"""Python packages as text: what a dotted name in them stands for, without importing them."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

#: A definition, the dotted path that an imported name stands for, or nothing known.
Node = ast.AST | str | None


class Missing(LookupError):
    """A name is not where we look for it."""


@dataclass
class Sources:
    """Packages as text: what a dotted name in them stands for.

    Args:
        roots: folders that hold packages.
    """

    roots: tuple[Path, ...]
    scopes: dict[str, dict[str, Node]] = field(default_factory=dict)

    def file(self, module: str) -> Path | None:
        """Where a module is written, if it is ours or theirs."""
        for root in self.roots:
            path = root.joinpath(*module.split("."))
            for file in (path / "__init__.py", path.with_suffix(".py")):
                if file.is_file():
                    return file
        return None

    def scope(self, module: str) -> dict[str, Node]:
        """What the names at the top of a module stand for."""
        if module not in self.scopes:
            self.scopes[module] = {}  # modules may import each other
            self.scopes[module].update(self._scope(module))
        return self.scopes[module]

    def _scope(self, module: str) -> Iterator[tuple[str, Node]]:
        file = self.file(module)
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for node in _at_top(parse(file)):
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                source = _source(node, package)
                if self.file(source):
                    yield from self.scope(source).items()
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                yield from imported(node, package).items()
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                node.home = module
                yield node.name, node
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if isinstance(node.value, ast.AST):
                    node.value.home = module
                yield from ((t.id, node.value) for t in targets if isinstance(t, ast.Name))

    def find(self, name: str) -> Node:
        """The definition of a dotted name; None where it leads out of these packages.

        Raises:
            Missing: where a part of it is nowhere.
        """
        first, *rest = name.split(".")
        if self.file(first) is None:
            return None
        module, node = first, ast.Module([], [])
        for depth, part in enumerate(rest):
            if isinstance(node, ast.Module) and self._is_module(module, part):
                module += f".{part}"
                if self.file(module) is None:
                    raise Missing(f"no {part} in {module.rpartition('.')[0]}")
                continue
            node = self.scope(module)[part] if isinstance(node, ast.Module) else node
            if isinstance(node, str):  # an import
                return self.find(".".join([node, *rest[depth + 1 :]]))
            return self._inside(node, rest[depth + 1 :])
        return node

    def _is_module(self, package: str, name: str) -> bool:
        """Whether a name in a package is a module of it, or nothing else; it may hold its like."""
        found, path = self.scope(package).get(name), f"{package}.{name}"
        return found is None or isinstance(found, str) and f"{found}.".startswith(f"{path}.")

    def _inside(self, node: Node, rest: list[str]) -> Node:
        for part in rest:
            if isinstance(node, ast.Call):  # as MODELS = Registry(...)
                node = self._named(node.func, node.home)
            if not isinstance(node, ast.ClassDef):
                return None
            known, found = self.member(node, part)
            if not known:
                raise Missing(f"no {part} in {node.home}.{node.name}")
            node = found
        return node

    def _named(self, expression: ast.AST, module: str) -> Node:
        """What a name or a chain of attributes in a module stands for."""
        chain = dotted(expression)
        if chain is None or chain.split(".")[0] not in self.scope(module):
            return None
        return self.find(f"{module}.{chain}")

    def member(self, cls: ast.ClassDef, name: str) -> tuple[bool, Node]:
        """Whether a class or a base of it has an attribute, and the attribute where it is known."""
        if name in _members(cls):
            return True, _members(cls)[name]
        bases = [self._named(base, cls.home) for base in cls.bases]
        found = [
            self.member(b, name) if isinstance(b, ast.ClassDef) else (True, None) for b in bases
        ]
        inherited = [(known, node) for known, node in found if known]
        return next(
            (f for f in inherited if f[1]), (bool(inherited) or hasattr(object, name), None)
        )


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def _at_top(node: ast.AST) -> Iterator[ast.AST]:
    """Statements that are run at import, those under if, try and with, too."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _at_top(child)


def _members(cls: ast.ClassDef) -> dict[str, Node]:
    """What a class defines, in its body or by ``self.name = ...``."""
    found: dict[str, Node] = {}
    for node in ast.walk(cls):
        if isinstance(node, ast.Attribute) and dotted(node) == f"self.{node.attr}":
            if isinstance(node.ctx, ast.Store):
                found.setdefault(node.attr, None)
    for node in _at_top(cls):
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = None
    return found


def _source(node: ast.ImportFrom, package: str) -> str:
    """The absolute module of ``from ... import``."""
    if not node.level:
        return node.module
    above = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


def imported(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, str]:
    """Names that an import makes -> what they stand for."""
    if isinstance(node, ast.ImportFrom):
        source = _source(node, package)
        return {a.asname or a.name: f"{source}.{a.name}" for a in node.names}
    return {
        a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0]
        for a in node.names
    }


def dotted(node: ast.AST) -> str | None:
    """``'a.b.c'`` of a chain of attributes, if it is one."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call) and dotted(node.func) == "super":
        return "super()"
    if isinstance(node, ast.Attribute) and (rest := dotted(node.value)):
        return f"{rest}.{node.attr}"
    return None

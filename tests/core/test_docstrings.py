"""Every public name is documented, and no docstring begins with a preposition."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistral_portable.graph import OPS

ROOT = Path(__file__).parent.parent.parent
PACKAGES = sorted(path for folder in ("mistral_portable", "backends") for path in (ROOT / folder).rglob("*.py"))
EVERYWHERE = sorted([*PACKAGES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def trees(paths: list[Path]) -> Iterator[tuple[str, ast.Module]]:
    for path in paths:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def described_elsewhere() -> set[str]:
    """The methods that a protocol or an abstract class documents, and the ops, which `graph/ops.py` does: whoever
    implements them need not say it again."""
    names = set(OPS)
    for _, tree in trees(PACKAGES):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and {"Protocol", "ABC"} & {ast.unparse(base) for base in node.bases}:
                names |= {item.name for item in node.body if isinstance(item, FUNCTIONS) and ast.get_docstring(item)}
    return names


def undocumented(path: str, tree: ast.Module, described: set[str]) -> Iterator[str]:
    """Public classes, functions, methods and properties without a docstring."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield f"{path}:{node.lineno} {node.name}"
            for item in node.body:
                if isinstance(item, FUNCTIONS) and item.name not in described and _needs_one(item):
                    yield f"{path}:{item.lineno} {node.name}.{item.name}"
        elif isinstance(node, FUNCTIONS) and _needs_one(node):
            yield f"{path}:{node.lineno} {node.name}"


def _needs_one(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Public, not documented, and neither an overload nor a setter."""
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return not node.name.startswith("_") and not ast.get_docstring(node) and not {"overload", "setter"} & decorators


def test_public_names_are_documented() -> None:
    described = described_elsewhere()
    found = [line for path, tree in trees(PACKAGES) for line in undocumented(path, tree, described)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("word", ["Of", "As", "What"])
def test_no_docstring_begins_with(word: str) -> None:
    found = [
        f"{path}:{getattr(node, 'lineno', 1)} {text.partition(chr(10))[0]}"
        for path, tree in trees(EVERYWHERE)
        for node in ast.walk(tree)
        if isinstance(node, Documented) and (text := ast.get_docstring(node) or "").split(" ", 1)[0] == word
    ]
    assert not found, "\n".join(found)


def test_the_walk_sees_what_is_missing() -> None:
    source = 'class A:\n    def b(self): ...\n    def _c(self): ...\ndef d(): ...\ndef e():\n    "Adds."\n'
    assert list(undocumented("x.py", ast.parse(source), {"f"})) == ["x.py:1 A", "x.py:2 A.b", "x.py:4 d"]
    assert list(undocumented("x.py", ast.parse(source), {"b"})) == ["x.py:1 A", "x.py:4 d"]

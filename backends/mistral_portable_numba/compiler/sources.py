"""Digests of the sources that a kernel is made of: an object on disk is named after them, and so is never stale.

A digest covers the kernel's module, all modules of this package that it imports, however indirectly, the registry, the
toolchain, and the versions of Numba and llvmlite. Comments, docstrings and line breaks do not count.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

__all__ = ["kernel_module", "source_digest"]

_PACKAGE = Path(__file__).parent.parent

_MODULES = (
    ("linear_float32", "dense"),
    ("linear_float16", "dense"),
    ("linear_bfloat16", "dense"),
    ("linear_", "linear"),
    ("encode_", "encode"),
    ("attention_", "attention"),
    ("store_", "kv"),
    ("probe_", "probes"),
    ("quantize", "activations"),
    ("route", "experts"),
    ("clear", "experts"),
    ("add_rows", "experts"),
    ("pack", "pack"),
    ("tape", "tape"),
    ("", "rows"),
)
"""The beginning of a kernel's name -> the module in `kernels/` that makes it; the first that fits. The registry knows,
too, but imports Numba, which a process whose kernels are on disk need not."""


def kernel_module(name: str) -> str:
    """The module in `kernels/` that makes a kernel: `kernel_module("linear_q4_k")` is "linear"."""
    return next(module for beginning, module in _MODULES if name.startswith(beginning))


def source_digest(name: str, package: Path = _PACKAGE) -> str:
    """24 hexadecimal digits for the sources of a kernel. package: the folder of this package, or of a copy."""
    content = hashlib.sha256(f"{version('numba')} {version('llvmlite')}".encode())
    paths = {package / "compiler" / "toolchain.py", package / "kernels" / "registry.py"}
    todo = [package / "kernels" / f"{kernel_module(name)}.py"]
    while todo:
        path = todo.pop()
        if path not in paths:
            paths.add(path)
            todo += _imports(path, package)
    for path in sorted(paths):
        content.update(f"\0{path.relative_to(package).as_posix()}\0{_code(path, path.stat().st_mtime_ns)}".encode())
    return content.hexdigest()[:24]


def _imports(path: Path, package: Path) -> Iterator[Path]:
    """The files of the package that a module imports."""
    for node in ast.walk(_tree(path, path.stat().st_mtime_ns)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mistral_portable_numba."):
            yield package.joinpath(*node.module.split(".")[1:]).with_suffix(".py")


@cache
def _tree(path: Path, changed_ns: int) -> ast.Module:
    return ast.parse(path.read_bytes())


@cache
def _code(path: Path, changed_ns: int) -> str:
    """A module as text that changes only if the code does."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)

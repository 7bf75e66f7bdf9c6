"""The tests that a change needs: those that import a changed file, however indirectly, or mention it by name.

An answer for the time before a commit, not a proof: a test that reaches a backend by `backend="auto"` or a command in a
process of its own is found only if it imports or names the changed part. CI runs everything.

`python tools/check.py --changed` runs them. Example: a change of `mistral_portable/sampling/stop.py` needs
`tests/sampling/test_stop.py`, which imports it, and every test of `engine/`, whose `stream.py` does; a change of
`backends/mistral_portable_jax/ops.py` needs `tests/jax/` and the tests that ask for the backend "jax" by its name.
"""

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["changed_files", "needed_tests"]

_ROOTS = ("", "backends/", "tests/", "tests/toy_backend/")
"""Folders, from the root of the repository, in which Python finds modules (pyproject.toml: mypy_path, pythonpath)."""

_BACKENDS = "mistral_portable_"
_EVERYTHING = "pyproject.toml"
_ENTRY = re.compile(r"mistral_portable[\w.]*:\w+")


def changed_files(root: Path, base: str) -> list[str]:
    """Files that differ from the commit `base`, and untracked ones, as paths from the repository's root."""
    commands = (["diff", "--name-only", base], ["ls-files", "--others", "--exclude-standard"])
    found = [
        subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True) for command in commands
    ]
    return sorted({line for result in found for line in result.stdout.splitlines()})


def needed_tests(root: Path, changed: Iterable[str]) -> list[str]:
    """Test files, as paths from the root, that a change of these files can affect. A changed conftest.py counts for its
    folder; a changed file that is no module (a document, the workflow) counts for the tests that mention its name."""
    changed = list(changed)
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*.py") if ".git" not in path.parts)
    texts = {name: (root / name).read_text(encoding="utf-8") for name in files}
    importers: dict[str, set[str]] = defaultdict(set)
    modules = _modules(files)
    for name, text in texts.items():
        for imported in _imports(text):
            for file in modules.get(imported, ()):
                importers[file].add(name)
        for folder in Path(name).parents:
            conftest = str(folder / "conftest.py")
            if conftest in texts:
                importers[conftest].add(name)
    affected, todo = set[str](), [name for name in changed if name in texts]
    while todo:
        name = todo.pop()
        if name not in affected:
            affected.add(name)
            todo += importers[name]
    words = {Path(name).name for name in changed if not name.endswith(".py")}
    words |= {f'"{part.removeprefix(_BACKENDS)}"' for name in changed for part in Path(name).parts if _is_backend(part)}
    tests = [name for name in files if name.startswith("tests/") and Path(name).name.startswith("test_")]
    if _EVERYTHING in changed:
        return tests
    return [name for name in tests if name in affected or any(word in texts[name] for word in words)]


def _is_backend(part: str) -> bool:
    return part.startswith(_BACKENDS) and not part.endswith(".py")


def _modules(files: Iterable[str]) -> dict[str, list[str]]:
    """The files that each module's dotted name can mean: {"tools.check": ["tools/check.py"]}."""
    modules: dict[str, list[str]] = defaultdict(list)
    for name in files:
        for root in _ROOTS:
            if name.startswith(root):
                module = name.removeprefix(root).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                modules[module].append(name)
    return modules


def _imports(text: str) -> Iterator[str]:
    """The modules that a source names in its imports, at its top or within a function, or as an entry point."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _ENTRY.fullmatch(node.value):
            yield node.value.partition(":")[0]

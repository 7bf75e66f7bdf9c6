"""LLVM IR of the product's kernels for tests, lowered once and kept beside the cache of compiled kernels.

A kernel's IR depends on its sources and, for some kernels, on how many tokens an instruction set takes at a time; so
one text serves several instruction sets and all processes of a test run.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock
from mistral_portable_numba.compiler.isa import ISAS
from mistral_portable_numba.compiler.objects import default_folder, digest
from mistral_portable_numba.compiler.toolchain import lower
from mistral_portable_numba.kernels.registry import kernel, needs_tokens

__all__ = ["kernel_ir", "made"]

_DAY = 24 * 3600


def made(path: Path, make: Callable[[], bytes]) -> Path:
    """The file at `path`, written with the result of `make` if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        if not path.exists():
            unfinished = path.with_name(f"{path.name}.part")
            unfinished.write_bytes(make())
            unfinished.replace(path)
    return path


def kernel_ir(name: str, tokens: int) -> str:
    """The LLVM IR of a kernel, for instruction sets that take this many tokens at a time."""
    tokens = tokens if needs_tokens(name) else 0
    # The digest's instruction set is one for all: the IR does not depend on it.
    key = digest(name, replace(ISAS["generic"], tokens=tokens))
    path = default_folder() / "tests" / f"{name}-{tokens}-{key}.ll"

    def lowered() -> bytes:
        for old in path.parent.glob(f"{name}-{tokens}-*.ll"):
            if old.stat().st_mtime < time.time() - _DAY:  # not one that a test run beside this one is about to read
                old.unlink(missing_ok=True)
        return lower(name, kernel(name, tokens)).encode()

    return made(path, lowered).read_text()

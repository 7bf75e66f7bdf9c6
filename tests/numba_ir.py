"""LLVM IR of the product's kernels and their code for ARM, made once for tests and kept beside the cache of kernels.

A kernel's IR depends on its sources and, for some kernels, on how many tokens an instruction set takes at a time and
how it multiplies bytes; so one text serves several instruction sets. All processes of a test run share the files,
and so do later runs.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock
from mistral_portable_numba.compiler.isa import ISAS, Isa
from mistral_portable_numba.compiler.objects import default_folder, digest
from mistral_portable_numba.compiler.toolchain import assembly, lower, object_file
from mistral_portable_numba.kernels.registry import kernel, needs_isa

__all__ = ["NEON", "TILED", "apple_listing", "arm_object", "kernel_ir", "linux_listing"]

NEON = ISAS["neon_dotprod"]
TILED = frozenset({"tiled_bfloat16"})
"""The kernels for AMX alone (`Isa.tiles`)."""
_DAY = 24 * 3600


def kernel_ir(name: str, isa: Isa) -> str:
    """The LLVM IR of a kernel, for instruction sets that take as many tokens at a time and products alike."""
    generic = ISAS["generic"]  # for all, as the IR depends on nothing else of an instruction set
    own = {field: getattr(isa, field) for field in ("tokens", "at_once", "words", "tiles", "squares")}
    like = replace(generic, **own) if needs_isa(name) else generic
    key = digest(name, like)
    return _kept(
        f"{name}-{like.tokens}{'w' if like.words else ''}{'t' if like.tiles else ''}{'s' if like.squares else ''}",
        key,
        "ll",
        lambda: lower(name, kernel(name, isa)).encode(),
    ).read_text()


def arm_object(name: str, isa: Isa = NEON) -> Path:
    """A kernel as a file of machine code for Linux on ARM."""
    triple = "aarch64-unknown-linux-gnu"
    return _kept(
        f"{name}-{isa.name}", digest(name, isa), "o", lambda: object_file(name, kernel_ir(name, isa), isa, triple)
    )


def apple_listing(name: str, isa: Isa = NEON) -> str:
    """A kernel in assembly for Apple's systems."""
    return _listing(name, isa, "arm64-apple-darwin")


def linux_listing(name: str, isa: str) -> str:
    """A kernel in assembly for Linux on x86-64."""
    return _listing(name, ISAS[isa], "x86_64-unknown-linux-gnu")


def _listing(name: str, isa: Isa, triple: str) -> str:
    def made() -> bytes:
        return assembly(name, kernel_ir(name, isa), isa, triple).encode()

    return _kept(f"{name}-{isa.name}", digest(name, isa), "s", made).read_text()


def _kept(stem: str, key: str, kind: str, make: Callable[[], bytes]) -> Path:
    """The file of a key. A missing one is written with the result of `make`, and files of other keys are deleted."""
    path = default_folder() / "tests" / f"{stem}-{key}.{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        if not path.exists():
            for old in path.parent.glob(f"{stem}-*.{kind}"):
                if old.stat().st_mtime < time.time() - _DAY:  # younger ones may be in use by a concurrent run
                    old.unlink(missing_ok=True)
            unfinished = path.with_name(f"{path.name}.part")
            unfinished.write_bytes(make())
            unfinished.replace(path)
    return path

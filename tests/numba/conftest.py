"""Kernels as ARM takes them: lowered and compiled once for all processes of pytest-xdist."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from mistral_portable_numba.compiler.isa import ISAS
from mistral_portable_numba.compiler.toolchain import object_file
from numba_kernels import lowered

NEON = ISAS["neon_dotprod"]


def made(path: Path, make: Callable[[], bytes]) -> Path:
    """The file, which is made if there is none."""
    with FileLock(path.with_name(f"{path.name}.lock")):
        if not path.exists():
            path.write_bytes(make())
    return path


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "arm"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def arm_ir() -> Callable[[str], str]:
    """The LLVM IR of a kernel with as many tokens as NEON takes."""

    def ir(name: str) -> str:
        return lowered(name, NEON.tokens)

    return ir


@pytest.fixture(scope="session")
def arm_object(shared_folder: Path, arm_ir: Callable[[str], str]) -> Callable[[str], Path]:
    """A kernel as a file of machine code for Linux on ARM."""

    def path(name: str) -> Path:
        triple = "aarch64-unknown-linux-gnu"
        return made(shared_folder / f"{name}.o", lambda: object_file(name, arm_ir(name), NEON, triple))

    return path

"""Kernels for ARM, lowered and compiled once for all processes of pytest-xdist."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from mistral_portable_numba.compiler.isa import ISAS
from mistral_portable_numba.compiler.toolchain import object_file
from numba_ir import kernel_ir, made

NEON = ISAS["neon_dotprod"]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "arm"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def arm_ir() -> Callable[[str], str]:
    """The LLVM IR of a kernel for as many tokens as NEON takes at a time."""
    return lambda name: kernel_ir(name, NEON.tokens)


@pytest.fixture(scope="session")
def arm_object(shared_folder: Path, arm_ir: Callable[[str], str]) -> Callable[[str], Path]:
    """A kernel as a file of machine code for Linux on ARM."""

    def path(name: str) -> Path:
        triple = "aarch64-unknown-linux-gnu"
        return made(shared_folder / f"{name}.o", lambda: object_file(name, arm_ir(name), NEON, triple))

    return path

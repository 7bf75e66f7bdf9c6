"""Kernels of every instruction set, run on memory that shows wrong reads and writes."""

import ctypes
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from filelock import FileLock
from mistral_portable_numba.compiler.amx_probe import amx_works
from mistral_portable_numba.compiler.chosen import lacking
from mistral_portable_numba.compiler.isa import ISAS, Isa
from mistral_portable_numba.compiler.objects import (
    LoadedKernels,
    default_folder,
    host_triple,
    object_path,
    write_object,
)
from mistral_portable_numba.compiler.toolchain import lower, object_file
from mistral_portable_numba.kernels.registry import MODULES
from mistral_portable_numba.layouts import TOKEN_GROUP, round_up
from mistral_portable_numba.tape import bits
from numba_ir import TILED, kernel_ir
from numpy.typing import NDArray

__all__ = ["EVERY_ISA", "NEEDS_AMX", "Argument", "Memory", "at", "compile_everywhere", "is_blank", "product_kernels"]

Argument = int | float | NDArray[Any] | Sequence[Any]

# Encoders are tested through the backend.
_NAMES = frozenset(name for name in MODULES if not name.startswith("encode_"))

_POISON = 0xFF  # such bytes are NaN in every float type
_GUARD = 256


def _lacks(isa: str) -> str:
    """The features that an instruction set needs and this machine lacks."""
    missing = ", ".join(lacking(ISAS[isa]))
    return missing or ("working AMX" if ISAS[isa].tiles and not amx_works(default_folder()) else "")


EVERY_ISA = pytest.mark.parametrize(
    "isa",
    [pytest.param(isa, marks=pytest.mark.skipif(_lacks(isa) != "", reason=f"no {_lacks(isa)} here")) for isa in ISAS],
)


NEEDS_AMX = pytest.mark.skipif(not amx_works(default_folder()), reason="AMX does not work here")

_HERE = [isa for name, isa in ISAS.items() if not _lacks(name)]


class Memory:
    """Arrays between sentinels. Memory without a value is NaN in every float type.

    Example: `memory.run(isa, "add", [tokens], columns, *at(a), *at(b), *at(out))`.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[NDArray[np.uint8], int, int]] = []

    def blank(self, shape: int | Sequence[int], dtype: Any) -> NDArray[Any]:
        """A poisoned array, aligned to its type and no further."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        start = _GUARD + (0 if dtype == np.int64 else dtype.itemsize)
        block = np.full(start + size + _GUARD, _POISON, np.uint8)
        self._blocks.append((block, start, start + size))
        array: NDArray[Any] = block[start : start + size].view(dtype).reshape(shape)
        return array

    def array(self, values: Any) -> NDArray[Any]:
        """A copy of values."""
        values = np.asarray(values)
        copy = self.blank(values.shape, values.dtype)
        copy[...] = values
        return copy

    def rows(self, count: int, columns: int, dtype: Any = np.float32) -> NDArray[Any]:
        """Poisoned rows as in a step: padded to whole groups of tokens, and to whole vectors."""
        return self.blank((round_up(count, TOKEN_GROUP), round_up(columns, 32) + 16), dtype)

    def rows_of(self, values: NDArray[Any]) -> NDArray[Any]:
        """Rows as in a step that begin with `values`; the padding is poison."""
        rows = self.rows(values.shape[0], values.shape[1], values.dtype)
        rows[: values.shape[0], : values.shape[1]] = values
        return rows

    def run(self, isa: str, kernel: str | Callable[..., Any], *arguments: Argument, thread: int = 0) -> None:
        """Call a kernel, by name or as a function, on one of two threads, which does all the work.

        Arrays are passed as addresses, lists as the address of an array of their values, floats as float64.
        """
        counter = np.zeros(8, np.int64)
        values = self.array(np.array([counter.ctypes.data, *map(self._word, arguments)], np.int64))
        _function(isa, kernel)(values.ctypes.data, thread, 2)
        self.check()

    def check(self) -> None:
        """Fail if a sentinel has been overwritten."""
        for block, start, stop in self._blocks:
            assert is_blank(block[:start]), "wrote before a buffer"
            assert is_blank(block[stop:]), "wrote after a buffer"

    def _word(self, argument: Argument) -> int:
        match argument:
            case np.ndarray():
                return int(argument.ctypes.data)
            case float():
                return bits(argument)
            case int() | np.integer():
                return int(argument)
            case _:
                return self._word(self.array(np.array([self._word(each) for each in argument], np.int64)))


def at(array: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Address and stride of rows."""
    return array, array.strides[0]


def is_blank(array: NDArray[Any]) -> bool:
    """Whether an array holds poison only."""
    return bool((np.ascontiguousarray(array).view(np.uint8) == _POISON).all())


@cache
def _function(isa: str, kernel: str | Callable[..., Any]) -> Callable[[int, int, int], None]:
    signature = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    if not isinstance(kernel, str):
        return signature(_own(isa, kernel))
    return signature(product_kernels(isa)[kernel])


@cache
def product_kernels(isa: str) -> LoadedKernels:
    """The kernels of steps. One of several processes that need them compiles them."""
    folder = default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tests.lock"):
        compile_everywhere(_NAMES, folder)
        return LoadedKernels(_NAMES - (frozenset() if ISAS[isa].tiles else TILED), ISAS[isa], folder)


def compile_everywhere(names: Collection[str], folder: Path) -> None:
    """Compile the kernels for all instruction sets of this machine into a cache folder.

    `LoadedKernels` would lower each kernel to IR once per instruction set, and that takes most of the time.
    """
    missing = [name for name in sorted(names) if not all(object_path(folder, name, isa).exists() for isa in _for(name))]
    missing.sort(key=lambda name: name.endswith(("_k", "_xs")), reverse=True)  # the slow ones first
    shares = [share for share in (missing[::2], missing[1::2]) if share]
    children = [subprocess.Popen([sys.executable, __file__, str(folder), *share]) for share in shares]
    assert [child.wait() for child in children] == [0] * len(children)


def _for(kernel: str) -> list[Isa]:
    """This machine's instruction sets for which a kernel is made."""
    return [isa for isa in _HERE if isa.tiles or kernel not in TILED]


def _compile_share(folder: Path, *names: str) -> None:
    for name in names:
        for isa in _for(name):
            path = object_path(folder, name, isa)
            if not path.exists():
                write_object(path, object_file(name, kernel_ir(name, isa), isa, host_triple()))


_engines: list[Any] = []  # they keep the code


def _own(isa: str, kernel: Callable[..., Any]) -> int:
    """The address of a test's function, compiled like the product's kernels."""
    code = object_file("own", lower("own", kernel), ISAS[isa], host_triple())
    machine = llvm.Target.from_triple(host_triple()).create_target_machine()
    # As in `LoadedKernels`: LLVM's own memory manager ends the process where code and constants are 2 GiB apart.
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine, use_lmm=True)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address("own"))


if __name__ == "__main__":
    _compile_share(Path(sys.argv[1]), *sys.argv[2:])

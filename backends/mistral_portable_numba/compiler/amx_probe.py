"""Whether AMX works here: a child process multiplies once, as some virtual machines announce AMX and trap.

`python -m mistral_portable_numba.compiler.amx_probe` is that child.
"""

import ctypes
import hashlib
import platform
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

from mistral_portable_numba.compiler.children import child_environment
from mistral_portable_numba.compiler.host import host_features
from mistral_portable_numba.compiler.isa import ISAS
from mistral_portable_numba.compiler.objects import write_whole
from mistral_portable_numba.compiler.toolchain import object_file
from mistral_portable_numba.layouts import tile_sizes

__all__ = ["amx_works", "announced", "multiply", "permit"]

_PROBE = """
define void @probe(i64 %sizes, i64 %a, i64 %b, i64 %c) {
  call void @mp.tiles(i64 %sizes)
  call void @mp.tile_zero.0()
  call void @mp.tile_zero.1()
  call void @mp.tile_zero.2()
  call void @mp.tile_load.4(i64 %a, i64 64)
  call void @mp.tile_load.6(i64 %b, i64 64)
  call void @mp.tile_bf16.0.4.6()
  call void @mp.tile_s8u8.1.4.6()
  call void @mp.tile_s8s8.2.4.6()
  call void @mp.tile_store.0(i64 %c, i64 64)
  %second = add i64 %c, 1024
  call void @mp.tile_store.1(i64 %second, i64 64)
  %third = add i64 %c, 2048
  call void @mp.tile_store.2(i64 %third, i64 64)
  call void @mp.tiles_end()
  ret void
}
"""
_AMX = ISAS["amx"]
_CHILD = (sys.executable, "-Pm", "mistral_portable_numba.compiler.amx_probe")
_VARIES = ("processor", "cpu MHz", "bogomips", "core id", "apicid", "initial apicid", "siblings", "cpu cores")
_PATIENCE = 60  # seconds for the child, which takes 0.4
_WRONG = 3  # the child's exit status if a product was not right
_TRAPPED = frozenset({-signal.SIGILL, -signal.SIGSEGV, -signal.SIGBUS})


@cache
def amx_works(folder: Path) -> bool:
    """Whether AMX works in this process and in its forks: the CPU announces it, a child's product was right, and the
    system permits it.

    The child's answer is kept in `folder`, the cache of kernels, until the system starts again: a file of two lines,
    "yes" or "no", and the name of the start. A child that could not try is no answer: a warning says so.
    """
    if not announced():
        return False
    file, boot = folder / "kernels" / _AMX.name / f"works-{_machine()}", _boot()
    answer, *since = _lines(file) or [""]
    if since != [boot] or not boot:
        fault = _child_fault()
        answer = "yes" if fault is None else "no"
        if fault:
            warnings.warn(f"whether AMX works was not found out ({fault}): not used this time", stacklevel=2)
        elif boot:
            with suppress(OSError):  # a folder that cannot be written to: each start asks a child
                write_whole(file, f"{answer}\n{boot}\n".encode())
    return answer == "yes" and permit()


def announced() -> bool:
    """Whether this is Linux, on a CPU that announces AMX and what else the kernels for it need."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return _AMX.needs <= host_features()


def permit() -> bool:
    """Ask Linux for the permission to use tiles, which counts for all threads, and for forks (arch_prctl,
    ARCH_REQ_XCOMP_PERM, since 5.16)."""
    arch_prctl, request, tile_data = 158, 0x1023, 18
    status: int = ctypes.CDLL(None).syscall(arch_prctl, request, tile_data)
    return status == 0


def multiply() -> bool:
    """Multiply two tiles, as bfloat16 and as bytes: whether the products are right. If AMX traps, the process dies."""
    if not permit():
        return False
    random = np.random.default_rng(0)
    wide = random.integers(-9, 10, (2, 16, 16, 2)).astype(np.float32)
    a, b = (wide.view(np.uint32) >> 16).astype(np.uint16)  # [m, k, 2] and [k, n, 2]
    out = np.zeros((3, 16, 16), np.int32)
    code = object_file("probe", _PROBE, _AMX, llvm.get_process_triple())
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    probe = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(engine.get_function_address("probe"))
    sizes = tile_sizes(16)
    probe(*(array.ctypes.data for array in (sizes, a, b, out)))
    left, *rights = (
        part.reshape(16, 16, 4).astype(np.int32) for part in (a.view(np.int8), b.view(np.uint8), b.view(np.int8))
    )
    expected = [np.einsum("mkp,knp->mn", left, right) for right in rights]
    floats = np.einsum("mkp,knp->mn", *wide)
    return np.array_equal(out[0].view(np.float32), floats) and np.array_equal(out[1:], expected)


def _child_fault() -> str | None:
    """Let a child process run `multiply`: None if it was right, "" if not or if AMX traps, else why nobody knows."""
    try:
        child = subprocess.run(_CHILD, capture_output=True, timeout=_PATIENCE, env=child_environment())
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if child.returncode in (0, _WRONG, *_TRAPPED):
        return "" if child.returncode else None
    lines = child.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {child.returncode}"]
    return lines[-1]


def _machine() -> str:
    """16 hex digits that change with the CPU's model, and with what is tried."""
    known = {_PROBE, str(llvm.llvm_version_info)}
    known |= {line for line in _lines(Path("/proc/cpuinfo")) if not line.startswith(_VARIES)}
    return hashlib.sha256("\n".join(sorted(known)).encode()).hexdigest()[:16]


def _boot() -> str:
    """The name of this run of the system, from its start on; "" where Linux does not give it."""
    return "".join(_lines(Path("/proc/sys/kernel/random/boot_id")))


def _lines(file: Path) -> list[str]:
    """The lines of a file; none if it is not there, or a sandbox hides it."""
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(0 if multiply() else _WRONG)

"""This machine: its features, and the best instruction set that they allow."""

import platform
import sys
from pathlib import Path

import llvmlite.binding as llvm

from mistral_portable_numba.compiler.isa import ISAS, Isa
from mistral_portable_numba.sysctl import sysctl

__all__ = ["host_features", "host_isa"]

_LINUX_ARM = {"asimd": "neon", "asimddp": "dotprod", "i8mm": "i8mm"}
"""Features of ARM: their names in /proc/cpuinfo, and LLVM's."""


def host_features(system: str = sys.platform, machine: str = platform.machine(), root: Path = Path("/")) -> set[str]:
    """The features of this machine, in LLVM's terms. LLVM itself does not report all of ARM."""
    if machine not in ("arm64", "aarch64"):
        return {name for name, has in llvm.get_host_cpu_features().items() if has}
    if system == "darwin":  # all have dotprod, i8mm those since M2
        return {"neon", "dotprod", *(["i8mm"] if sysctl("hw.optional.arm.FEAT_I8MM") else [])}
    try:
        words = set((root / "proc" / "cpuinfo").read_text().split())
    except OSError:
        return set()
    return {feature for word, feature in _LINUX_ARM.items() if word in words}


def host_isa(system: str = sys.platform, machine: str = platform.machine(), root: Path = Path("/")) -> Isa:
    """The best instruction set of this machine, but AMX, which must be tried (`amx_probe.py`)."""
    here = host_features(system, machine, root)
    return next(isa for isa in ISAS.values() if not isa.tiles and isa.needs <= here)

"""The instruction set that kernels are compiled for: the machine's best, or another one that it has."""

import os

import llvmlite.binding as llvm

from mistral_portable.errors import BackendError
from mistral_portable_numba.compiler.isa import ISAS, Isa, host_isa

__all__ = ["VARIABLE", "chosen_isa", "lacking"]

VARIABLE = "MISTRAL_PORTABLE_ISA"
"""The environment variable that names an instruction set, to measure it or to have the answers of another machine."""


def chosen_isa(name: str | None = None) -> Isa:
    """The instruction set of a name, or of VARIABLE if that is set, or else the machine's best.

    Raises BackendError for a name that is none, and for an instruction set that this machine lacks.
    """
    name = name or os.environ.get(VARIABLE)
    if not name:
        return host_isa()
    here = [isa.name for isa in ISAS.values() if not lacking(isa)]
    if name in here:
        return ISAS[name]
    fault = f"this machine lacks {', '.join(lacking(ISAS[name]))}" if name in ISAS else "there is no such name"
    raise BackendError(f"instruction set {name!r}: {fault}; {VARIABLE} may be {', '.join(here)} here, or unset")


def lacking(isa: Isa) -> list[str]:
    """The features, in LLVM's terms, that an instruction set needs and this machine lacks."""
    if isa == host_isa():  # LLVM does not report all features of ARM
        return []
    here = llvm.get_host_cpu_features()
    wanted = [feature[1:] for feature in isa.features.split(",") if feature.startswith("+")]
    return [feature for feature in wanted if not here.get(feature)]

"""The instruction set that kernels are compiled for: the machine's best, or another one that it has."""

import os
from pathlib import Path

from mistral_portable.errors import BackendError
from mistral_portable_numba.compiler.amx_probe import amx_works
from mistral_portable_numba.compiler.host import host_features, host_isa
from mistral_portable_numba.compiler.isa import ISAS, Isa
from mistral_portable_numba.compiler.objects import default_folder

__all__ = ["VARIABLE", "chosen_isa", "lacking"]

VARIABLE = "MISTRAL_PORTABLE_ISA"
"""The environment variable that names an instruction set, to measure it or to have the answers of another machine."""


def chosen_isa(name: str | None = None, folder: Path | None = None) -> Isa:
    """The instruction set of a name, or of VARIABLE if that is set, or else the machine's best.

    folder: the cache of kernels, where it is kept whether AMX works here; None: the default one.
    Raises BackendError for a name that is none, and for an instruction set that this machine lacks.
    """
    name, folder = name or os.environ.get(VARIABLE), folder or default_folder()
    if not name:
        return ISAS["amx"] if amx_works(folder) else host_isa()

    def runs(isa: Isa) -> bool:
        return not lacking(isa) and (not isa.tiles or amx_works(folder))

    if name in ISAS and runs(ISAS[name]):
        return ISAS[name]
    here = [isa.name for isa in ISAS.values() if runs(isa)]
    fault = "there is no such name"
    if name in ISAS:
        fault = f"this machine lacks {', '.join(lacking(ISAS[name])) or 'AMX that works'}"
    raise BackendError(f"instruction set {name!r}: {fault}; {VARIABLE} may be {', '.join(here)} here, or unset")


def lacking(isa: Isa) -> list[str]:
    """The features, in LLVM's terms, that an instruction set needs and this machine lacks."""
    return sorted(isa.needs - host_features())

"""`python -m mistral_portable_numba.compiler ISA FOLDER KERNEL...`: compile kernels, a line of output each."""

import sys
from pathlib import Path

from mistral_portable_numba.compiler.isa import ISAS
from mistral_portable_numba.compiler.objects import host_triple, object_path, write_object
from mistral_portable_numba.compiler.toolchain import lower, object_file
from mistral_portable_numba.kernels.registry import kernel


def main(isa_name: str, folder: str, *names: str) -> None:
    """Compile kernels for this system into a cache folder (see `objects`)."""
    isa = ISAS[isa_name]
    for name in names:
        text = lower(name, kernel(name, isa.tokens))
        write_object(object_path(Path(folder), name, isa), object_file(name, text, isa, host_triple()))
        print(name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""`python -m mistral_portable_numba.compiler ISA KERNEL...`: compile kernels for this system (see `children`)."""

import sys

from mistral_portable_numba.compiler.children import send
from mistral_portable_numba.compiler.isa import ISAS
from mistral_portable_numba.compiler.objects import host_triple
from mistral_portable_numba.compiler.toolchain import lower, object_file
from mistral_portable_numba.kernels.registry import kernel


def main(isa_name: str, *names: str) -> None:
    """Compile kernels, and hand each object to the parent as soon as it is made."""
    isa = ISAS[isa_name]
    for name in names:
        send(name, object_file(name, lower(name, kernel(name, isa)), isa, host_triple()))


if __name__ == "__main__":
    main(*sys.argv[1:])

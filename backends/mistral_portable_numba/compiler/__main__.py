"""`python -m mistral_portable_numba.compiler ISA FOLDERS KERNEL...`: compile kernels, a line of output each.

FOLDERS is a JSON list.
"""

import json
import sys
from pathlib import Path

from mistral_portable_numba.compiler.isa import ISAS
from mistral_portable_numba.compiler.objects import host_triple, object_path, write_object
from mistral_portable_numba.compiler.toolchain import lower, object_file
from mistral_portable_numba.kernels.registry import kernel


def main(isa_name: str, folders: str, *names: str) -> None:
    """Compile kernels for this system into the first of some cache folders that takes them (see `objects`)."""
    isa, places = ISAS[isa_name], [Path(folder) for folder in json.loads(folders)]
    for name in names:
        text = lower(name, kernel(name, isa))
        code = object_file(name, text, isa, host_triple())
        for place in places:
            try:
                write_object(object_path(place, name, isa), code)
                break
            except OSError:  # a full disk
                if place is places[-1]:
                    raise
        print(name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

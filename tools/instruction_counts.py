"""Instructions of linear kernels, also for CPUs that are not here: `python -m tools.instruction_counts`.

The functions that the kernels are made of (`kernels/linear.py`) are compiled for each instruction set, and `llvm-mca`
simulates their innermost loop on LLVM's model of a CPU, with all memory in the first-level cache. It is in Debian's
package llvm-19; the models of older versions are coarse for ARM.

The table in docs/numba.md has its figures: instructions, those of them that use the stack (spilled registers),
micro-operations, and cycles. They are per 1,024 products of a weight and a token, which is 32 columns of 32 rows; those
of unpacking, which all tokens of a step share, per 1,024 weights.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mistral_portable_numba.compiler.isa import ISAS, Isa
from mistral_portable_numba.compiler.simd.get_put import get_i64
from mistral_portable_numba.compiler.toolchain import assembly, lower
from mistral_portable_numba.kernels.formats import FORMATS, Format
from mistral_portable_numba.kernels.linear import products_of

__all__ = ["Counts", "counted", "innermost"]

MODELS = (
    ("avx2", "znver3"),
    ("avx_vnni", "alderlake"),
    ("neon_dotprod", "neoverse-n1"),
    ("neon_dotprod", "neoverse-v1"),
    ("neon_i8mm", "neoverse-v1"),
)
"""Instruction sets, and names of CPUs in LLVM's terms."""

_PRODUCTS = {"sdot": 16, "smmla": 32, "vpmaddubsw": 32, "vpdpbusd": 32}
"""Products of bytes that an instruction makes, with registers of 256 bits on x86."""

_STACK = re.compile(r"\[sp[,\]]|\(%rsp\)")
_PASS = 1024  # products


@dataclass(frozen=True)
class Counts:
    """Numbers of instructions, of those that use the stack, of micro-operations, and of cycles, per 1,024 products."""

    instructions: float
    stack: float
    operations: float
    cycles: float

    def __str__(self) -> str:
        return f"{self.instructions:.0f} ({self.stack:.0f}), {self.operations:.0f}, {self.cycles:.0f}"


def counted(fmt: Format, isa: Isa, cpu: str, program: str = "llvm-mca-19") -> Iterator[tuple[str, Counts]]:
    """Names of loops, such as "one token", and their counts. Raises OSError where there is no `program`."""
    made, tile_bytes, weights = products_of(fmt, isa), 16 * fmt.layout.bytes, 16 * fmt.layout.columns
    loops = {"one token": (made.one, tile_bytes), "few": (made.some, tile_bytes), "many": (made.many, 64)}
    for title, (times, apart) in loops.items():
        body = innermost(_listing(_loop(times, apart), isa))
        products = sum(_PRODUCTS.get(line.removeprefix("\t{vex}").split()[0], 0) for line in body)
        yield title, _simulated(body, products, isa, cpu, program)
    yield "unpacking", _simulated(innermost(_listing(_unpacking(made.take_apart), isa)), weights, isa, cpu, program)


def innermost(listing: list[str]) -> list[str]:
    """The instructions of the longest loop that has no loop in it."""
    places = {line.split(":")[0]: at for at, line in enumerate(listing) if re.match(r"\.?L\w+:", line)}
    loops = [
        (places[target], at)
        for at, line in enumerate(listing)
        if line.startswith("\t") and places.get(target := line.split()[-1], at) < at
    ]
    inner = [loop for loop in loops if not any(loop[0] <= a and b <= loop[1] and loop != (a, b) for a, b in loops)]
    first, last = max(inner, key=lambda loop: loop[1] - loop[0])
    return _instructions(listing[first : last + 1])


def _instructions(lines: list[str]) -> list[str]:
    return [line for line in lines if re.match(r"\t[a-z{]", line)]


def _loop(times: Callable[..., Any], apart: int) -> Callable[..., Any]:
    def kernel(args: Any, thread: Any, threads: Any) -> None:
        p, blocks, due, x = get_i64(args), get_i64(args + 8), get_i64(args + 16), get_i64(args + 24)
        u, out, os = get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        times(p, p + apart, blocks, due, x, u, out, os, False)

    return kernel


def _unpacking(take_apart: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(p: Any, blocks: Any, to: Any) -> None:
        take_apart(p, blocks, to)

    return kernel


def _triple(isa: Isa) -> str:
    return f"{'aarch64' if 'neon' in isa.name else 'x86_64'}-unknown-linux-gnu"


def _listing(kernel: Callable[..., Any], isa: Isa) -> list[str]:
    return assembly("kernel", lower("kernel", kernel), isa, _triple(isa)).splitlines()


def _simulated(body: list[str], products: int, isa: Isa, cpu: str, program: str) -> Counts:
    command = [program, f"-mtriple={_triple(isa)}", f"-mcpu={cpu}", "-iterations=100", "-json"]
    done = subprocess.run(command, input="\n".join(body), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)["CodeRegions"][0]["SummaryView"]
    per = _PASS / products
    stack = sum(bool(_STACK.search(line)) for line in body)
    operations, cycles = (found[name] / found["Iterations"] for name in ("TotaluOps", "TotalCycles"))
    return Counts(len(body) * per, stack * per, operations * per, cycles * per)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="q4_0,q4_k,q6_k,q8_0", help="names of block formats, with commas")
    parser.add_argument("--llvm-mca", default="llvm-mca-19", help="the program")
    options = parser.parse_args()
    if not shutil.which(options.llvm_mca):
        parser.error(f"--llvm-mca {options.llvm_mca}: no such program, it is in Debian's package llvm-19")
    if unknown := set(options.formats.split(",")) - FORMATS.keys():
        parser.error(f"--formats {','.join(sorted(unknown))}: choose from {', '.join(FORMATS)}")
    print(f"| | {' | '.join(f'{isa}, {cpu}' for isa, cpu in MODELS)} |\n|---{'|---' * len(MODELS)}|")
    for name in options.formats.split(","):
        found = [dict(counted(FORMATS[name], ISAS[isa], cpu, options.llvm_mca)) for isa, cpu in MODELS]
        for title in found[0]:
            print(f"| {name}, {title} | {' | '.join(str(counts[title]) for counts in found)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

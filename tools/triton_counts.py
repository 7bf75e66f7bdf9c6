"""Counts of the torch executor's Triton kernels, without a GPU: `python -m tools.triton_counts`.

Each kernel is compiled for a GPU of compute capability 9.0 (or `--capability 80`) with the arguments that the executor
gives it for the shapes of Mistral 7B in bfloat16, on tensors without memory. Counted in the machine code (SASS) that
`cuobjdump`, which comes with Triton, prints, in the kernel's longest loop, or in all of it if it has none.

The table in docs/torch.md has its figures. The last column: the time in which a multiprocessor issues a pass's
instructions, by the time in which its share of the memory's bandwidth moves what the pass must move. From 1 on
instructions bound it.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from mistral_portable_torch import elementwise_kernels, float_gemv, gemv, tiles, unpacking
from mistral_portable_torch.attention import paged_kernels
from mistral_portable_torch.attention.paged import splits_of
from mistral_portable_torch.elementwise import Turn
from mistral_portable_torch.planes import Planes
from triton.backends.compiler import GPUTarget

__all__ = ["LAUNCHES", "Counts", "counted"]

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_ISSUED = 4  # instructions of warps that a multiprocessor begins in a clock
_MOVED = 3.35e12 / 132 / 1.7e9  # bytes a clock that one of 132 of an H100 gets of 3.35 TB/s, at 1.7 GHz: 15
# The most used ones of `--quantize`, those in Q4_K_M files, and one whose codes stand for levels.
_KINDS = ("q4_0", "q8_0", "q4_k", "q6_k", "iq4_xs")
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


@dataclass(frozen=True)
class Counts:
    """name: of the kernel's function. registers, and spilled bytes: of a thread. shared: bytes of a program.

    whole: all instructions of the kernel. Of a pass of the loop: instructions of a warp; bytes that all threads of a
    program load, also the same ones; needed: bytes of what it computes with, keys and values or weights, and of what it
    writes. warps: of a program.
    """

    name: str
    registers: int
    spilled: int
    shared: int
    warps: int
    whole: int
    instructions: int
    loaded: int
    needed: int

    @property
    def issue(self) -> float:
        """The time to issue a pass's instructions, in units of the time to move what it needs."""
        return self.instructions * self.warps / _ISSUED / (self.needed / _MOVED)


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _attend(sequences: int, head_dim: int = 128) -> None:
    """Decoding at a depth of 4,096 tokens: pages of 256 slots, 32 heads, 8 key/value heads."""
    pool, lengths = _meta(400, 256, 8, head_dim), _meta(sequences, dtype=torch.int32)
    table = _meta(sequences, 17, dtype=torch.int32)
    splits = splits_of(sequences, 8, 17 * 256)
    paged_kernels.attend(_meta(sequences, 32, head_dim), pool, pool, table, lengths, lengths, 0.1, splits)


def _multiply(by: Any, kind: str, tokens: int) -> None:
    by.multiply(_meta(tokens, 4096), _planes(kind))


def _multiply_floats(tokens: int) -> None:
    float_gemv.multiply(_meta(tokens, 4096), _meta(4096, 4096))


def _gate(kind: str | None, tokens: int) -> None:
    """Gate and up, with SwiGLU. kind: of their matrix; None: floats."""
    x = _meta(tokens, 4096)
    if kind is None:
        float_gemv.multiply(x, _meta(28672, 4096), gated=True)
    else:
        gemv.multiply(x, _planes(kind, 28672), gated=True)


def _unpack(kind: str) -> None:
    unpacking.unpack(_planes(kind), torch.bfloat16)


def _planes(kind: str, rows: int = 4096) -> Planes:
    return Planes.empty(kind, (rows, 4096), torch.device("meta"))


def _rotate() -> None:
    """One token: 32 query heads, 8 key/value heads, side by side."""
    q, k, v = _meta(1, 6144).split_with_sizes([4096, 1024, 1024], dim=1)
    table, pool = _meta(1, 1, 2, 64, dtype=torch.float32), _meta(400, 256, 8, 128)
    slots, turn = _meta(1, dtype=torch.int64), Turn(table, table)
    elementwise_kernels.rope_into(q, k, v, (turn, turn), pool, pool, slots)


LAUNCHES: dict[str, Callable[[], object]] = {
    "sum and RMS norm": lambda: elementwise_kernels.add_rms_norm(_meta(1, 4096), _meta(1, 4096), _meta(4096), 1e-5),
    "rotations, keys, values": _rotate,
    "SwiGLU": lambda: elementwise_kernels.silu_mul(*_meta(1, 28672).chunk(2, dim=1)),
    "attention, 1 sequence": lambda: _attend(1),
    "attention, head_dim 64": lambda: _attend(1, 64),
    "attention, head_dim 256": lambda: _attend(1, 256),
    "product of a token, floats": partial(_multiply_floats, 1),
    **{f"product of {tokens} tokens, floats": partial(_multiply_floats, tokens) for tokens in (2, 4)},
    **{f"product of a token, {kind}": partial(_multiply, gemv, kind, 1) for kind in _KINDS},
    **{f"product of 4 tokens, {kind}": partial(_multiply, gemv, kind, 4) for kind in _KINDS},
    **{f"SwiGLU of {tokens} products, floats": partial(_gate, None, tokens) for tokens in (1, 4)},
    **{f"SwiGLU of {tokens} products, {kind}": partial(_gate, kind, tokens) for tokens in (1, 2) for kind in _KINDS},
    **{f"product of 16 tokens, {kind}": partial(_multiply, tiles, kind, 16) for kind in _KINDS},
    **{f"product of 64 tokens, {kind}": partial(_multiply, tiles, kind, 64) for kind in _KINDS},
    **{f"unpacking, {kind}": partial(_unpack, kind) for kind in _KINDS},
}
"""Calls of the executor's functions, each of which launches one kernel or two."""


def counted(launch: Callable[[], object], capability: int = 90) -> list[Counts]:
    """The counts of the kernels that a function launches, which are compiled and not run."""
    with _compiled_only(capability) as kernels:
        launch()
    return [_counts(*kernel) for kernel in kernels]


@contextmanager
def _compiled_only(capability: int) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """A context in which Triton's kernels are compiled for a GPU that is not there, and collected in the list, with
    their constants."""
    target, made, run = GPUTarget("cuda", capability, 32), list[tuple[Any, dict[str, Any]]](), triton.JITFunction.run
    driver = SimpleNamespace(
        get_current_target=lambda: target, get_current_device=lambda: capability, get_current_stream=lambda device: 0
    )
    runtime = triton.runtime.driver
    before = runtime._active

    def compile_only(kernel: Any, *arguments: Any, **options: Any) -> None:
        made.append((run(kernel, *arguments, **options | {"warmup": True}), options))

    triton.JITFunction.run = compile_only
    runtime.set_active(driver)
    try:
        yield made
    finally:
        triton.JITFunction.run = run
        runtime._active = before


def _counts(kernel: Any, constants: dict[str, Any]) -> Counts:
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()

        def dump(what: str) -> str:
            return subprocess.run([program, what, file.name], capture_output=True, text=True, check=True).stdout

        usage = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", dump("-res-usage"))}
        code = _INSTRUCTION.findall(dump("-sass"))
    body = _longest_loop([(int(place, 16), name, rest) for place, name, rest in code])
    loads = [name.split(".") for name in body if name.startswith(("LDG.", "LDGSTS."))]
    widths = (next((_WIDTHS[part] for part in load if part in _WIDTHS), 4) for load in loads)
    loaded = 32 * kernel.metadata.num_warps * sum(widths)
    spilled = usage["STACK"] + usage["LOCAL"]
    name, shared, warps = kernel.metadata.name, kernel.metadata.shared, kernel.metadata.num_warps
    whole = sum(name != "NOP" for _, name, _ in code)
    return Counts(name, usage["REG"], spilled, shared, warps, whole, len(body), loaded, _needed(name, constants))


def _needed(name: str, constants: Mapping[str, int]) -> int:
    """Bytes of keys and values, of partial results, of weights, or of rows that a pass takes, and of weights and rows
    that it writes."""
    if name == "_split":
        return 2 * 2 * constants["TILE"] * constants["SIZE"]
    if name == "_merge":
        return 4 * constants["TOGETHER"] * (constants["SIZE"] + 2)
    if name == "_rms_norm":  # of two rows and the weight, two rows are made
        return 2 * 5 * constants["SIZE"]
    if name == "_silu_mul":
        return 2 * 3 * constants["COLUMNS"]
    if name == "_rope_into":  # heads before and behind, and what they turn by
        return (2 * 2 * constants["TOGETHER"] + 2 * 4) * 2 * constants["HALF"]
    if name == "_float_gemv":
        return 2 * constants["ROWS"] * constants["COLUMNS"]
    scales = constants["HALVES"] * (1 if constants["PRODUCTS"] else 2) + constants["PRODUCTS"] * 2 / 8
    group = 4 * (constants["LOW"] + constants["HIGH"]) + scales * (1 + constants["MINIMA"])
    if name == "_unpack":
        return int((group + 2 * 32) * constants["TOGETHER"])
    return int(group * constants["ROWS"] * constants["GROUPS"])


def _longest_loop(code: list[tuple[int, str, str]]) -> list[str]:
    """Names of the instructions in the longest stretch that a branch goes back over; all of them if none does."""
    loops = [
        (int(target.group(1), 16), place)
        for place, name, rest in code
        if name.startswith("BRA") and (target := re.search(r"0x([0-9a-f]+)", rest)) and int(target.group(1), 16) < place
    ]
    begin, end = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, code[-1][0]))
    return [name for place, name, _ in code if begin <= place <= end and name != "NOP"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90, help="of the GPU: 80, 86, 89, 90, 100")
    capability = parser.parse_args().capability
    print(f"Triton {triton.__version__}, compute capability {capability / 10}\n")
    print("| Kernel | Registers | Spilled | Shared | Whole | Instructions | Bytes loaded | Bytes needed | Issue |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, launch in LAUNCHES.items():
        for row in counted(launch, capability):
            figures = (row.registers, row.spilled, row.shared, row.whole, row.instructions, row.loaded, row.needed)
            print(f"| {name}: `{row.name}` | {' | '.join(f'{n:,}' for n in figures)} | {row.issue:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

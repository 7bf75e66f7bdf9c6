"""Quantized weights for tests of linear kernels, packed by the product's code."""

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from mistral_portable_numba.compiler.isa import ISAS
from mistral_portable_numba.layouts import BLOCKS, FEW_TILED, linear_scratch, round_up, token_group
from mistral_portable_numba.matrices import matrices
from numba_activations import Codes
from numba_kernels import Memory, at, is_blank
from numpy.typing import NDArray
from weights.files import random_blocks

from mistral_portable.testing import compare
from mistral_portable.testing.rounding import EPSILON
from mistral_portable.weights import QuantTensor

__all__ = ["HALVES", "KINDS", "Expected", "PackedWeight", "signed_blocks"]

KINDS = tuple(BLOCKS)

_PAIRS = {"q4_1": (0, 2), "q5_1": (0, 2), "q2_k": (80, 82), "q4_k": (0, 2), "q5_k": (0, 2)}
HALVES = {kind: _PAIRS.get(kind, (max(layout.half, 0),)) for kind, layout in BLOCKS.items()}
"""Byte offsets of the float16 numbers in a block."""


class Expected:
    """x @ weight.T in float64, and in plain float32 on numbers moved by up to an epsilon, as in `NaiveProgram`; more
    such runs where there are few results to compare."""

    def __init__(self, x: NDArray[Any], weight: NDArray[Any], random: np.random.Generator) -> None:
        def nudged(y: NDArray[Any]) -> NDArray[np.float32]:
            return (y * (1 + random.uniform(-1, 1, y.shape) * EPSILON["float32"])).astype(np.float32)

        self._ref = x.astype(np.float64) @ weight.astype(np.float64).T
        self._naive = [nudged(x) @ nudged(weight).T for _ in range(8 + 256 // max(1, self._ref.size))]

    def check(self, out: NDArray[np.float32]) -> None:
        """Compare `out`, the rows of the first tokens."""
        tokens = len(out)
        assert compare(out, self._ref[:tokens], [run[:tokens] for run in self._naive], "float32").problem == ""


def signed_blocks(kind: str, rows: int, columns: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Random blocks, uint8 [rows, bytes]: any bits, float16 scales and offsets of either sign, some of them 0."""
    blocks = random_blocks(kind.upper(), (rows, columns), random).reshape(-1, BLOCKS[kind].bytes)
    for offset in HALVES[kind]:
        halves = blocks[:, offset : offset + 2].copy().view(np.float16)
        blocks[:, offset : offset + 2] = (halves * random.choice(np.array([-1, 0, 1], np.float16), halves.shape)).view(
            np.uint8
        )
    return blocks.reshape(rows, -1)


class PackedWeight:
    """Blocks [rows, bytes] as the kernels of an instruction set read them: `tiles`."""

    def __init__(self, isa: str, kind: str, blocks: NDArray[np.uint8], order: NDArray[np.intp] | None = None) -> None:
        """order: for each row of the weight its row in `blocks`; None: the same."""
        self._isa, self._layout = isa, BLOCKS[kind]
        shape = (len(blocks), blocks.shape[1] // self._layout.bytes * self._layout.columns)
        self._tensor = QuantTensor("w", shape, GGMLQuantizationType[kind.upper()], blocks, order)
        empty = matrices({"w": [self._tensor]}, quantized=True)["w"]
        self._memory = Memory()
        self.tiles = self._memory.blank(empty.data.shape, np.uint8)
        self._matrix = replace(empty, data=self.tiles)
        packing = self._matrix.packing()
        self._memory.run(isa, "pack", *packing.arguments)

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """The values of the blocks, [rows, columns]."""
        values: NDArray[np.float32] = dequantize(self._tensor.blocks(), GGMLQuantizationType(self._tensor.type))
        return values

    def times(self, codes: NDArray[np.int8], scales: NDArray[np.float32], thread: int = 0) -> NDArray[np.float32]:
        """(codes * scales) @ values.T, of codes [tokens, columns] and scales [tokens, columns / 128]."""
        memory, (tokens, columns), rows, isa = Memory(), codes.shape, self._matrix.rows, ISAS[self._isa]
        blocks, sums32, sums16 = map(memory.array, Codes(codes, scales).laid_out(isa))
        sums = sums16 if self._layout.step == 16 else sums32
        out = memory.rows(tokens, rows)
        scratch = memory.blank((2, linear_scratch(self._layout, isa.tiles)), np.uint8)
        weight = (self._matrix.row_pairs, columns // self._layout.columns, self.tiles)
        places = [place for array in (out, blocks, sums, scratch) for place in at(array)]
        memory.run(self._isa, f"linear_{self._matrix.kind}", [tokens], *weight, *places, thread=thread)
        self._memory.check()
        assert is_blank(scratch[1 - thread]), "wrote to another thread's scratch"
        assert is_blank(out[:, round_up(rows, 32) :])
        written = (
            tokens if isa.tiles and tokens > FEW_TILED else round_up(tokens, token_group(tokens, isa.tokens, isa.tiles))
        )
        assert is_blank(out[written:])
        return out[:tokens, :rows]

"""How weights, activations, keys and values lie in memory: what kernels and their callers agree on. Needs no Numba.

**Weights in ggml blocks.** A tile holds the blocks of 16 rows, lane by lane: for each block column, dword i of the 16
rows' blocks makes vector i (64 bytes, lane r is row r), and a float16 that stands alone makes a last vector of 16.
Nothing is re-encoded: a tile has exactly the bytes of its rows, and to pack is to transpose.

    q4_0, 18 bytes a block: | d | 16 bytes of nibbles |   ->   4 vectors of nibbles, 16 x d: 288 bytes a tile block

Kernels take two tiles at a time: those of a pair lie block by block beside each other, one stream of memory.

**Activations** of integer linears: groups of tokens, one after the other, and of each group blocks of 128 columns as
int8 (`activation_block`), and beside them sums of the codes (`activation_sums`). As with weights, four columns make a
dword; those of the tokens of a group lie side by side:

    a block of a group of 8   ->   32 x 8 dwords of codes, 8 scales: a kernel reads them in order

**Keys and values** of a lane of a layer, `slots` allocated (whole blocks of 64), per key/value head:

    keys    [slots / 16, head_dim, 16]   so that 16 keys are the lanes of a vector: a score is no sum over lanes
    values  [slots, width]               width: head_dim filled up to a multiple of 32

as float32, float16, or int8 with a scale for each 32 numbers of a key or value, max|x| / 127 in float16 (q8_0). The
scales lie behind the numbers: keys' [slots / 16, width / 32, 16], values' [slots, width / 32].
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "BLOCKS",
    "CHUNK",
    "ENCODE_SCRATCH",
    "KV_DTYPES",
    "SLOT_BLOCK",
    "START_ZEROS",
    "TILE_ROWS",
    "TOKEN_GROUP",
    "BlockLayout",
    "activation_block",
    "activation_bytes",
    "activation_sums",
    "attention_scratch",
    "head_width",
    "linear_record",
    "linear_scratch",
    "round_up",
    "token_group",
    "tokens_per_item",
]

TILE_ROWS = 16
SLOT_BLOCK = 64

TOKEN_GROUP = 8
"""Linears take up to so many tokens at a time, and go beyond the last one: buffers have room for whole groups."""

START_ZEROS = {32: 8, 16: 32}
"""Integer sums over a step begin with -zero * the sum of its inputs: by step, the zero that is at hand (q4_0, q6_k)."""

CHUNK = 512
"""Columns of a linear that are taken apart at a time: two tiles of them fit into a first-level cache, and the inputs of
some hundred tokens into a second-level one."""

ENCODE_SCRATCH = 64 * (256 + 3 * 64)
"""Bytes that a thread that makes blocks needs: 256 columns of 16 rows, scales, and a tile of the longest block."""

KV_DTYPES: dict[str, "np.dtype[Any]"] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "q8_0": np.dtype(np.int8),
}
"""Types of the cache, and of the numbers in it."""


@dataclass(frozen=True)
class BlockLayout:
    """columns: of a block. bytes: stored, of one row's. half: offset of a lone float16 in it, or -1; the other bytes
    are dwords from `payload` on. step: columns per scale. offset: whether there are offsets (minima), too."""

    columns: int
    bytes: int
    half: int
    payload: int
    step: int
    offset: bool = False

    @property
    def dwords(self) -> int:
        """Words of 4 bytes in a block."""
        return self.bytes // 4


BLOCKS = {
    "q4_0": BlockLayout(32, 18, 0, 2, 32),
    "q4_1": BlockLayout(32, 20, -1, 0, 32, offset=True),
    "q5_0": BlockLayout(32, 22, 0, 2, 32),
    "q5_1": BlockLayout(32, 24, -1, 0, 32, offset=True),
    "q8_0": BlockLayout(32, 34, 0, 2, 32),
    "iq4_nl": BlockLayout(32, 18, 0, 2, 32),
    "q2_k": BlockLayout(256, 84, -1, 0, 16, offset=True),
    "q3_k": BlockLayout(256, 110, 108, 0, 16),
    "q4_k": BlockLayout(256, 144, -1, 0, 32, offset=True),
    "q5_k": BlockLayout(256, 176, -1, 0, 32, offset=True),
    "q6_k": BlockLayout(256, 210, 208, 0, 16),
    "iq4_xs": BlockLayout(256, 136, -1, 0, 32),
}
"""By ggml's name in lower case."""


def round_up(number: int, multiple: int) -> int:
    """The next multiple: 33, 32 -> 64."""
    return -(-number // multiple) * multiple


def token_group(count: int, most: int) -> int:
    """How many of `count` tokens a linear takes at a time, where the instruction set allows `most`."""
    return 1 if count == 1 else 4 if count <= 4 else most


def activation_block(group: int) -> "np.dtype[Any]":
    """128 columns of a group of tokens: 132 bytes a token.

    codes: column 4i + j of token t is [i, t, j]. scale: of the 128 columns.
    """
    return np.dtype([("codes", np.int8, (32, group, 4)), ("scale", np.float32, (group,))])


def activation_sums(group: int, step: int) -> "np.dtype[Any]":
    """The sums of the int8 codes over each `step` columns (32 or 16) of 32 columns of a group of tokens.

    start: -START_ZEROS[step] times the sum. sum: itself, for weights with offsets.
    """
    shape = (32 // step, group)
    return np.dtype([("start", np.int32, shape), ("sum", np.float32, shape)])


def activation_bytes(columns: int) -> tuple[int, int, int]:
    """Bytes that a token of so many columns takes: in blocks, in sums over 32 and in sums over 16."""
    blocks, subs = -(-columns // 128), columns // 32
    sums32, sums16 = (subs * activation_sums(1, step).itemsize for step in (32, 16))
    return blocks * activation_block(1).itemsize, sums32, sums16


def linear_record(layout: BlockLayout) -> int:
    """Bytes of 32 columns of two tiles, taken apart: 8 x 2 vectors of codes, then scales, then offsets."""
    return 1024 + 128 * (32 // layout.step) * (2 if layout.offset else 1)


def linear_scratch(layout: BlockLayout) -> int:
    """Scratch that each thread needs for a linear."""
    return CHUNK // 32 * linear_record(layout)


def head_width(head_dim: int) -> int:
    """Numbers that a value takes in the cache."""
    return round_up(head_dim, 32)


def tokens_per_item(group: int) -> int:
    """Query tokens of a work item of attention, if `group` query heads share a key/value head: some 64 rows."""
    return max(1, 64 // group)


def padded_rows(group: int) -> int:
    """Rows of a full work item, filled up to fours."""
    return round_up(tokens_per_item(group) * group, 4)


def attention_scratch(group: int, head_dim: int) -> int:
    """Scratch that each thread needs: queries, outputs, a maximum and a sum for each row, 4 x 64 weights, factors."""
    return 4 * (padded_rows(group) * (2 * head_width(head_dim) + 2) + 4 * 64 + 16)

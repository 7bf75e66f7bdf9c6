"""Memory layouts of weights, activations, keys and values, shared by the kernels and their callers. Imports no Numba.

**Weights in ggml blocks.** A tile holds the blocks of 16 rows, transposed. For each block column, dword i of the 16
rows' blocks makes vector i (64 bytes; lane r belongs to row r); a float16 outside the dwords makes a last vector of 16
float16. Nothing is re-encoded: a tile has exactly the bytes of its rows.

    q4_0, 18 bytes a block: | d | 16 bytes of nibbles |   ->   4 vectors of nibbles, 16 x d: 288 bytes a tile block

Kernels read two tiles at a time. The tiles of a pair are interleaved block by block, so that a pair is one stream of
memory.

**Activations** of integer linears are stored in groups of tokens. Each group has blocks of 128 columns as int8 codes
(`activation_block`) and, in arrays of their own, sums of the codes (`activation_sums`). Four columns make a dword, as
with weights; the dwords of a group's tokens lie side by side:

    a block of a group of 8   ->   32 x 8 dwords of codes, 8 scales: a kernel reads them in order

With AMX and more than FEW_TILED tokens, groups of up to 16 have, for 64 columns at a time, the codes of one token after
the other; the scales follow the codes of all columns.

**Keys and values** lie in pages of 64 slots. A layer has a pool of pages for its keys and one for its values. A page
has, for each key/value head in turn:

    keys    [head_dim, 64]          keys are the lanes of vectors, so a score needs no sum across lanes
    values  [width / 32, 64, 32]    width: head_dim rounded up to a multiple of 32

The numbers are float32, float16, or int8 with a float16 scale, max|x| / 127, for each 32 numbers of a key or value
(q8_0). Bytes lie in fours, whose products are added in a lane: four columns of a key, four values of a column.

    keys    [head_dim / 4, 64, 4]           head_dim rounded up to a multiple of 4
    values  [width / 32, 16, 32, 4]

The scales follow the head's numbers, as [width / 32, 64]. Attention reads all of it in order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOCKS",
    "BLOCK_TOKENS",
    "CHUNK",
    "DENSE_CHUNK",
    "DENSE_PART",
    "DENSE_ROWS",
    "DENSE_SCRATCH",
    "DENSE_TOKENS",
    "ENCODE_SCRATCH",
    "FEW",
    "FEW_TILED",
    "KV_BESIDE",
    "KV_DTYPES",
    "PAGE_SIZE",
    "SHARE",
    "START_ZEROS",
    "TILED_CHUNK",
    "TILED_GROUP",
    "TILED_QUADS",
    "TILED_SCRATCH",
    "TILED_SUMS",
    "TILED_TOKENS",
    "TILE_ROWS",
    "TOKEN_GROUP",
    "BlockLayout",
    "activation_block",
    "activation_bytes",
    "activation_sums",
    "all_tile_sizes",
    "bf16_bytes",
    "head_bytes",
    "head_width",
    "integer_record",
    "linear_record",
    "linear_scratch",
    "round_up",
    "split_record",
    "square_record",
    "tile_sizes",
    "token_group",
]

TILE_ROWS = 16

PAGE_SIZE = 64
"""Slots of a page of keys and values: as many as attention takes at a time."""

TOKEN_GROUP = 8
"""The most tokens that linears take at a time, but for AMX. They read and write whole groups, so buffers have room for
these; AMX writes no more tokens than there are, and reads up to the end of the last 8."""

FEW = 16
"""Tokens of a step up to which groups have four: then a pair of tiles is read anew for each, from the CPU's cache."""

FEW_TILED, TILED_GROUP = 4, 16
"""Where there is AMX: the most tokens that are multiplied without it, and the tokens of a group that it takes."""

START_ZEROS = {32: 8, 16: 32}
"""Zero points, by columns per scale, whose correction is computed with the activations: 8 as in q4_0, 32 as in q6_k.

A weight is scale * (code - zero), so the integer dot product of a step starts at -zero * the sum of the step's int8
inputs (`activation_sums`). Formats with other zero points scale this start.
"""

CHUNK = 512
"""Columns of a linear that are unpacked into scratch at a time: two tiles of them fit into a first-level cache, and the
inputs of about a hundred tokens into a second-level one."""

TILED_CHUNK, TILED_QUADS, TILED_TOKENS = 256, 4, 256
"""Columns, pairs of tiles of 16 rows, and tokens that products of AMX's tiles take at a time. Two tiles of weights then
stay in the first-level cache, and sums and inputs in the second-level one."""

TILED_SCRATCH = 128 * TILED_CHUNK + 256 * TILED_QUADS * TILED_TOKENS
"""Bytes of scratch per thread for these products: weights, then sums."""

SHARE = 4
"""Pairs of tiles that a thread claims where there are many tokens."""

BLOCK_TOKENS, TILED_SUMS = 512, 128 + 4096
"""Tokens that AMX multiplies with unpacked blocks at a time, and bytes of scratch for the sizes of its tiles and for
four tiles of integer sums; behind these are float sums, for a share of pairs, then two records of what was unpacked."""

DENSE_CHUNK, DENSE_PART, DENSE_ROWS, DENSE_TOKENS = 256, 16, 32, 60
"""Columns and rows of float matrices that are unpacked at a time, and rows and tokens whose sums wait in scratch; 60
tokens are whole groups of 3 and of 4."""

DENSE_SCRATCH = 4 * DENSE_PART * DENSE_CHUNK + 64 * DENSE_ROWS * DENSE_TOKENS
"""Bytes of scratch per thread for these products: unpacked rows in float32, then sums."""

ENCODE_SCRATCH = 64 * (256 + 3 * 64)
"""Bytes of scratch per thread for encoding blocks: 256 columns of 16 rows, scales, and a tile of the longest block."""

KV_DTYPES: dict[str, "np.dtype[Any]"] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "q8_0": np.dtype(np.int8),
}
"""Cache type -> dtype of its numbers."""

KV_BESIDE = {"float32": 1, "float16": 1, "q8_0": 4}
"""Cache type -> columns of a key, or values of a column, that lie side by side, to be multiplied together."""


@dataclass(frozen=True)
class BlockLayout:
    """The layout of a ggml block format.

    columns, bytes: of a block of one row. half: the byte offset of the float16 outside the dwords, or -1. payload: the
    byte offset of the first dword. step: columns per scale. offset: whether it has offsets (minima) besides scales.
    """

    columns: int
    bytes: int
    half: int
    payload: int
    step: int
    offset: bool = False

    @property
    def dwords(self) -> int:
        """Dwords in a block."""
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
"""Block formats by ggml's name in lower case."""


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is at least `number`: 33, 32 -> 64."""
    return -(-number // multiple) * multiple


def token_group(count: int, most: int, tiles: bool) -> int:
    """The tokens that a linear takes at a time when the step has `count`.

    most, tiles: `Isa.tokens`, `Isa.tiles`. Where there are more than FEW_TILED tokens and tiles, the last group has no
    more than are left; else groups are whole.
    """
    if tiles:
        return 1 if count == 1 else 4 if count <= FEW_TILED else TILED_GROUP
    return 1 if count == 1 else 4 if count <= FEW else most


def activation_block(group: int) -> "np.dtype[Any]":
    """The dtype of 128 columns of a group of tokens, 132 bytes a token.

    codes: column 4i + j of token t is [i, t, j]. scale: one per token, for its 128 columns.
    """
    return np.dtype([("codes", np.int8, (32, group, 4)), ("scale", np.float32, (group,))])


def activation_sums(group: int, step: int, words: bool) -> "np.dtype[Any]":
    """The dtype of 32 columns' sums of codes for a group of tokens, over `step` columns each, 32 or 16.

    start: the sum times -START_ZEROS[step]; with `words` in two parts, of the columns 4k and 4k + 1 and of the others.
    sum: the sum, for weights with offsets. pairs: two sums, of the two steps of 16 columns, or of these 32 columns and
    the next ones; then only where 64 columns begin.
    words: `Isa.words`.
    """
    steps = 32 // step
    start = ("start", np.int16, (steps, group, 2)) if words else ("start", np.int32, (steps, group))
    return np.dtype([start, ("sum", np.float32, (steps, group)), ("pairs", np.int16, (group, 2))])


def activation_bytes(columns: int) -> tuple[int, int, int]:
    """Bytes that a token of this many columns takes at most: in blocks, in sums over 32 and over 16 columns."""
    blocks, subs = -(-columns // 128), columns // 32
    sums32, sums16 = (subs * activation_sums(1, step, True).itemsize for step in (32, 16))
    return blocks * activation_block(1).itemsize, sums32, sums16


def linear_record(layout: BlockLayout) -> int:
    """Bytes of 32 unpacked columns of two tiles: 8 x 2 vectors of codes, then scales, then offsets."""
    return 1024 + 128 * (32 // layout.step) * (2 if layout.offset else 1)


def integer_record(layout: BlockLayout) -> int:
    """Bytes of 128 unpacked columns of two tiles with integer scales: four times 8 x 2 vectors of codes and the scales,
    then d, and for offsets dmin and pairs of them."""
    steps = 32 // layout.step
    return 4 * (1024 + 128 * steps) + 128 * (2 + 2 * steps if layout.offset else 1)


def split_record(layout: BlockLayout) -> int:
    """Bytes of 128 columns of two tiles, unpacked for AMX: 32 x 2 vectors of low bytes, as many of high ones, then d,
    and for offsets dmin and pairs of them."""
    return 8192 + 128 * (2 + 64 // layout.step if layout.offset else 1)


def square_record(layout: BlockLayout) -> int:
    """Bytes of 32 unpacked columns of two tiles for `kernels/squares.py`: like `linear_record`, but scales and offsets
    stand twice."""
    return 1024 + 256 * (32 // layout.step) * (2 if layout.offset else 1)


def linear_scratch(layout: BlockLayout, tiles: bool) -> int:
    """Bytes of scratch per thread for a linear, at most. tiles: `Isa.tiles`."""
    needs = [CHUNK // 32 * square_record(layout), CHUNK // 128 * integer_record(layout)]
    if tiles:
        record = split_record(layout) if layout.columns == 256 else 4 * linear_record(layout)
        needs.append(TILED_SUMS + 128 * SHARE * BLOCK_TOKENS + 2 * record)
    return max(needs)


def tile_sizes(tokens: int) -> NDArray[np.uint8]:
    """64 bytes that give AMX's tiles their sizes, to multiply 16 rows of weights with up to 16 tokens.

    Tiles of sums, 0 to 3, are float32 or int32 [16, tokens]. Of the factors, 4 is 64 bytes of each row,
    and 5 to 7 are these columns of the tokens, dwords [16, tokens].
    """
    sizes = np.zeros((), np.dtype([("palette", "u1"), ("start", "u1", 15), ("bytes", "<u2", 16), ("rows", "u1", 16)]))
    sizes["palette"] = 1
    sizes["rows"][:8] = 16
    sizes["bytes"][:8] = [*[4 * tokens] * 4, 64, *[4 * tokens] * 3]
    return sizes.reshape(1).view(np.uint8)


def all_tile_sizes() -> NDArray[np.uint8]:
    """[17, 64]: the sizes for n tokens are row n; row 0 is not used."""
    return np.stack([tile_sizes(max(1, n)) for n in range(17)])


def bf16_bytes(columns: int) -> int:
    """Bytes of a token's columns in bfloat16, padded to a multiple of 32 columns: 33 -> 128."""
    return 2 * round_up(columns, 32)


def head_width(head_dim: int) -> int:
    """Numbers that a value vector takes in the cache: head_dim rounded up to a multiple of 32."""
    return round_up(head_dim, 32)


def head_bytes(dtype: str, head_dim: int) -> dict[str, int]:
    """Bytes of a page that a key/value head takes in the cache type `dtype`, of "keys" and of "values".

    Example: float16, head_dim 40: {"keys": 64 * 40 * 2, "values": 64 * 64 * 2}.
    """
    width = head_width(head_dim)
    scales = width // 32 * 2 if dtype == "q8_0" else 0
    counts = {"keys": round_up(head_dim, KV_BESIDE[dtype]), "values": width}
    return {kind: PAGE_SIZE * (count * KV_DTYPES[dtype].itemsize + scales) for kind, count in counts.items()}

"""Decode attention over pages, in Triton: a key and its value are read once for all query heads that share them.

A program takes one sequence, one key/value head and one part of the keys (a split), which it goes along tile by tile; a
tile lies in one page. The softmax is kept as it goes: the largest score so far, and sums relative to it (Milakov and
Gimelshein 2018, algorithm 3). Splits are merged by a second kernel, as in flash decoding (Dao et al. 2023).

Tables and lengths are data: a launch depends on the shapes alone. No slot is read that the query does not see.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mistral_portable_torch.products import INTERPRETED, product

__all__ = ["attend"]

_LOWEST = tl.constexpr(-3.0e38)
"""Less than any score; finite, so that the difference of two of them is."""

_TILE = 8192  # numbers of a tile's keys: 64 keys of head_dim 128
_MERGED = 16  # splits that are merged at a time


def attend(
    q: Tensor, keys: Tensor, values: Tensor, table: Tensor, ends: Tensor, hidden: Tensor, scale: float, splits: int
) -> Tensor:
    """One query of each sequence, q [S, h, d], over pools [pages, page, g, d] of its dtype -> [S, h, d].

    table int32 [S, columns]: the sequence's pages in order of time. It sees their slots hidden [S] .. ends [S] - 1,
    counted from the first page's first slot on; hidden is less than a page. splits: parts of a sequence's keys.

    Example: pages of 4 slots, table [[5, 2]], hidden [3], ends [6]: it sees slot 3 of page 5, and slots 0 and 1 of
    page 2. Two splits take a page each.
    """
    q = q.contiguous()
    sequences, heads, size = q.shape
    page, groups = keys.shape[1:3]
    out = torch.empty_like(q)
    sums = out if splits == 1 else q.new_empty(sequences, heads, splits, size, dtype=torch.float32)
    weights = out if splits == 1 else q.new_empty(sequences, heads, splits, 2, dtype=torch.float32)
    padded = max(16, triton.next_power_of_2(size))  # 16 is the least size of a matrix product's operand
    tile = max(16, min(_TILE // padded, triton.next_power_of_2(page)))
    _split[(sequences, groups, splits)](
        q, keys, values, table, ends, hidden, sums, weights, scale * 1.4426950408889634, table.shape[1],
        GROUPS=groups, SHARED=heads // groups, SIZE=size, PAGE=page, WHOLE=splits == 1,
        ROWS=max(16, triton.next_power_of_2(heads // groups)), PADDED=padded,
        TILE=tile, INTERPRETED=INTERPRETED, num_stages=2,
    )  # fmt: skip
    if splits > 1:
        _merge[(sequences * heads,)](sums, weights, out, splits, SIZE=size, PADDED=padded, TOGETHER=_MERGED)
    return out


@triton.jit(do_not_specialize=["columns"])
def _split(
    q, keys, values, table, ends, hidden, sums, weights, scale, columns,
    GROUPS: tl.constexpr, SHARED: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """scale: of scores, times log2(e), as exp2 is what the hardware has. WHOLE: there is one split; sums is the result.

    Else sums float32 [S, h, splits, SIZE] gets the values' sums, and weights float32 [S, h, splits, 2] the largest
    score and the weights' sum. A split without keys writes a weight of 0, and no sums.
    """
    sequence, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tiles: tl.constexpr = (PAGE + TILE - 1) // TILE
    first, end = tl.load(hidden + sequence), tl.load(ends + sequence)
    begin = first // TILE
    stop = (end - 1) // PAGE * tiles + (end - 1) % PAGE // TILE + 1
    share = tl.cdiv(stop - begin, tl.num_programs(2))
    begin += split * share
    stop = tl.minimum(stop, begin + share)

    row, slot, column = tl.arange(0, ROWS), tl.arange(0, TILE), tl.arange(0, PADDED)
    head = (sequence * GROUPS + group).to(tl.int64) * SHARED + row
    inside = (row < SHARED)[:, None] & (column < SIZE)[None, :]
    query = tl.load(q + head[:, None] * SIZE + column[None, :], mask=inside, other=0.0)
    top = tl.full((ROWS,), _LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, PADDED), tl.float32)
    for tile in range(begin, stop):
        number = tl.load(table + sequence * columns + tile // tiles).to(tl.int64)
        offset = tile % tiles * TILE + slot
        index = tile // tiles * PAGE + offset
        seen = (index >= first) & (index < end) & (offset < PAGE)
        at = ((number * PAGE + offset) * GROUPS + group)[:, None] * SIZE + column[None, :]
        known = seen[:, None] & (column < SIZE)[None, :]
        key = tl.load(keys + at, mask=known, other=0.0)
        value = tl.load(values + at, mask=known, other=0.0)
        score = product(query, tl.trans(key), tl.zeros((ROWS, TILE), tl.float32), INTERPRETED) * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrunk = tl.exp2(top - higher)
        total = total * shrunk + tl.sum(weight, 1)
        summed = product(weight.to(value.dtype), value, summed * shrunk[:, None], INTERPRETED)
        top = higher

    if WHOLE:
        result = (summed / total[:, None]).to(sums.dtype.element_ty)
        tl.store(sums + head[:, None] * SIZE + column[None, :], result, mask=inside)
    else:
        place = head * tl.num_programs(2) + split
        tl.store(sums + place[:, None] * SIZE + column[None, :], summed, mask=inside & (total != 0)[:, None])
        tl.store(weights + place * 2, top, mask=row < SHARED)
        tl.store(weights + place * 2 + 1, total, mask=row < SHARED)


@triton.jit(do_not_specialize=["splits"])
def _merge(sums, weights, out, splits, SIZE: tl.constexpr, PADDED: tl.constexpr, TOGETHER: tl.constexpr):
    """A query head's splits."""
    head = tl.program_id(0).to(tl.int64)
    column, lane = tl.arange(0, PADDED), tl.arange(0, TOGETHER)
    top = tl.full((), _LOWEST, tl.float32)
    total = tl.zeros((), tl.float32)
    summed = tl.zeros((PADDED,), tl.float32)
    for first in range(0, splits, TOGETHER):
        split = first + lane
        place = head * splits + split
        highest = tl.load(weights + place * 2, mask=split < splits, other=_LOWEST)
        weight = tl.load(weights + place * 2 + 1, mask=split < splits, other=0.0)
        higher = tl.maximum(top, tl.max(highest, 0))
        factor = tl.where(weight != 0, tl.exp2(highest - higher), 0.0)
        known = (weight != 0)[:, None] & (column < SIZE)[None, :]  # also of NaN
        part = tl.load(sums + place[:, None] * SIZE + column[None, :], mask=known, other=0.0)
        shrunk = tl.exp2(top - higher)
        total = total * shrunk + tl.sum(factor * weight, 0)
        summed = summed * shrunk + tl.sum(factor[:, None] * part, 0)
        top = higher
    tl.store(out + head * SIZE + column, (summed / total).to(out.dtype.element_ty), mask=column < SIZE)

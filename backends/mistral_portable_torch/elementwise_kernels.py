"""The operations of `elementwise.py` as one kernel each, in Triton: in float32, rounded where the graph's values are.

A launch depends on shapes alone: slots and positions are data.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["add_rms_norm", "rms_norm", "rope_into", "silu_mul"]

_COLUMNS = 1024  # of a program of silu_mul
_PAIRS = 512  # of numbers that a program of rope_into turns


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `Elementwise`."""
    out = x.new_empty(x.shape)
    _norm(x, None, weight, eps, x, out)
    return out


def add_rms_norm(a: Tensor, b: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `Elementwise`."""
    total, out = a.new_empty(a.shape), a.new_empty(a.shape)
    _norm(a, b, weight, eps, total, out)
    return total, out


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """See `Elementwise`."""
    rows, size = gate.shape
    out = gate.new_empty(rows, size)
    _silu_mul[(rows, triton.cdiv(size, _COLUMNS))](
        gate, up, out, gate.stride(0), up.stride(0), SIZE=size, COLUMNS=_COLUMNS
    )
    return out


def rope_into(
    q: Tensor, k: Tensor, v: Tensor, turns: Sequence[tuple[Tensor, Tensor]], keys: Tensor, values: Tensor, slots: Tensor
) -> Tensor:
    """See `Elementwise`."""
    groups, size = keys.shape[2:]
    tokens, heads = len(q), q.shape[1] // size
    out = q.new_empty(q.shape)
    padded = triton.next_power_of_2(size // 2)
    together = max(1, _PAIRS // padded)
    of_queries, of_keys = triton.cdiv(heads, together), triton.cdiv(groups, together)
    _rope_into[(tokens, of_queries + 2 * of_keys)](
        q, k, v, *turns[0], *turns[1], slots, out, keys, values, q.stride(0), k.stride(0), v.stride(0),
        HEADS=heads, GROUPS=groups, HALF=size // 2, PADDED=padded, TOGETHER=together,
        OF_QUERIES=of_queries, OF_KEYS=of_keys,
    )  # fmt: skip
    return out


def _norm(x: Tensor, added: Tensor | None, weight: Tensor, eps: float, total: Tensor, out: Tensor) -> None:
    """A program takes a row: x, or its sum with `added`, which it writes to `total`."""
    rows, size = x.shape
    padded = triton.next_power_of_2(size)
    other = x if added is None else added
    _rms_norm[(rows,)](
        x, other, weight, total, out, eps, x.stride(0), other.stride(0),
        SIZE=size, PADDED=padded, ADDS=added is not None, num_warps=min(16, max(1, padded // 512)),
    )  # fmt: skip


@triton.jit
def _rms_norm(
    x, added, weight, total, out, eps, x_row, added_row, SIZE: tl.constexpr, PADDED: tl.constexpr, ADDS: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    inside = column < SIZE
    wide = tl.load(x + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    scales = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        wide += tl.load(added + row * added_row + column, mask=inside, other=0.0).to(tl.float32)
        rounded = wide.to(total.dtype.element_ty)
        tl.store(total + row * SIZE + column, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    root = tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    tl.store(out + row * SIZE + column, (wide * root * scales).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _silu_mul(gate, up, out, gate_row, up_row, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < SIZE
    wide = tl.load(gate + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(up + row * up_row + column, mask=inside, other=0.0).to(tl.float32)
    made = wide / (1 + tl.exp(-wide)) * factor
    tl.store(out + row * SIZE + column, made.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rope_into(
    q, k, v, q_cos, q_sin, k_cos, k_sin, slots, out, keys, values, q_row, k_row, v_row,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr, TOGETHER: tl.constexpr,
    OF_QUERIES: tl.constexpr, OF_KEYS: tl.constexpr,
):  # fmt: skip
    """A program takes TOGETHER heads of a token: of its queries, its keys or its values."""
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + token) * (GROUPS * 2 * HALF)
    table, number = token * (2 * HALF), tl.arange(0, TOGETHER)
    if part < OF_QUERIES:
        head = part * TOGETHER + number
        to = out + token * (HEADS * 2 * HALF)
        _turn(q + token * q_row, q_cos + table, q_sin + table, to, head, HEADS, HALF, PADDED)
    elif part < OF_QUERIES + OF_KEYS:
        head = (part - OF_QUERIES) * TOGETHER + number
        _turn(k + token * k_row, k_cos + table, k_sin + table, keys + slot, head, GROUPS, HALF, PADDED)
    else:
        head = (part - OF_QUERIES - OF_KEYS) * TOGETHER + number
        column = tl.arange(0, 2 * PADDED)
        at = head[:, None] * (2 * HALF) + column[None, :]
        inside = (head < GROUPS)[:, None] & (column < 2 * HALF)[None, :]
        tl.store(values + slot + at, tl.load(v + token * v_row + at, mask=inside), mask=inside)


@triton.jit
def _turn(x, cos, sin, out, head, HEADS: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr):
    """Heads of a row, both halves of each: (a, b) becomes (a cos + b sin, b cos + a sin), by two rows of a table."""
    pair = tl.arange(0, PADDED)
    inside = (head < HEADS)[:, None] & (pair < HALF)[None, :]
    at = head[:, None] * (2 * HALF) + pair[None, :]
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + at + HALF, mask=inside, other=0.0).to(tl.float32)
    upper, lower = _row(cos, pair, HALF), _row(cos + HALF, pair, HALF)
    crossed, back = _row(sin, pair, HALF), _row(sin + HALF, pair, HALF)
    made = (first * upper + second * crossed).to(out.dtype.element_ty)
    tl.store(out + at, made, mask=inside)
    tl.store(out + at + HALF, (second * lower + first * back).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _row(table, pair, HALF: tl.constexpr):
    return tl.load(table + pair, mask=pair < HALF, other=0.0)[None, :]

"""Search for the scales and offsets that minimize a block's quantization error.

A lane is a row of the matrix, so nothing is added across lanes, and no row depends on another. Column i of a block is
the vector at x + 64i, its importance the float32 at w + 4i. The error is the sum of importance * (x - value)^2.

Given a scale, the best codes are the nearest ones; given codes, the best scale and offset follow from linear least
squares. The search tries scales that map the largest number to one code or another, and refines the best of them by
alternating the two. Where scales are themselves small integers times a float16, it then tries those integers and their
neighbours with the stored float16, and refits the float16 to all of them by least squares, alternating again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mistral_portable_numba.compiler.simd.convert import as_f16_bits, low_f16, nearest, rounded
from mistral_portable_numba.compiler.simd.lanes import absolute, all_f32, fma, keep_in, where_less
from mistral_portable_numba.compiler.simd.load_store import load_f32, repeat_f32, store_f32
from mistral_portable_numba.compiler.simd.operation import inlined

__all__ = ["Grid", "affine_block", "affine_super", "integers", "inverse_of", "signed_block", "signed_super", "table"]

_HUGE = 1e38


@dataclass(frozen=True)
class Grid:
    """The values that codes stand for, before scale and offset. snap(v): the nearest of the values low..high, as
    float32. code(q): the code of such a value, as int32."""

    low: float
    high: float
    snap: Callable[..., Any]
    code: Callable[..., Any]


def integers(low: int, high: int, zero: int) -> Grid:
    """The grid low, low + 1, .. high; a value's code is the value plus `zero`."""
    least, most = float(low), float(high)

    @inlined
    def snap(v: Any) -> Any:
        return rounded(keep_in(v, least, most))

    @inlined
    def code(q: Any) -> Any:
        return nearest(q + zero)

    return Grid(least, most, snap, code)


def table(*values: int) -> Grid:
    """The grid of ascending integers whose codes are 0, 1, ..."""
    first, rest = float(values[0]), tuple(map(float, values[1:]))
    steps = tuple((b - a, (a + b) / 2) for a, b in zip((first, *rest), rest, strict=False))
    count = len(steps)
    heights, bounds = tuple(height for height, _ in steps), tuple(bound for _, bound in steps)

    @inlined
    def snap(v: Any) -> Any:
        value = all_f32(first)
        for i in range(count):
            value = where_less(all_f32(bounds[i]), v, value + heights[i], value)
        return value

    @inlined
    def code(q: Any) -> Any:
        index = all_f32(0.0)
        for i in range(count):
            index = where_less(all_f32(bounds[i]), q, index + 1.0, index)
        return nearest(index)

    return Grid(first, rest[-1], snap, code)


@inlined
def inverse_of(value: Any) -> Any:
    """1 / value, or 0 where that would not be finite."""
    return where_less(all_f32(1e-37), absolute(value), all_f32(1.0) / value, all_f32(0.0))


@inlined
def _determined(a: Any, b: Any) -> Any:
    """1 / (a - b) for a determinant a - b that is never negative; 0 where only rounding makes it differ from 0."""
    return where_less(a * 1e-6, a - b, inverse_of(a - b), all_f32(0.0))


@inlined
def _half(value: Any) -> Any:
    """The nearest float16."""
    return low_f16(as_f16_bits(value))


# --- scale * code --------------------------------------------------------------------------------------------------


def _signed_search(grid: Grid, n: int, tries: int, reach: float) -> Any:
    """(x, w) -> the scale of n columns. It tries scales that map the number farthest from 0 to either end of the grid,
    or up to `reach` steps above or below it."""
    snap, low, high = grid.snap, grid.low, grid.high
    step = 2 * reach / (tries - 1)

    @inlined
    def sums(x: Any, w: Any, inverse: Any) -> Any:
        xq, qq = all_f32(0.0), all_f32(0.0)
        for i in range(n):
            v = load_f32(x + 64 * i)
            q = snap(v * inverse)
            wq = repeat_f32(w + 4 * i) * q
            xq, qq = fma(wq, v, xq), fma(wq, q, qq)
        return xq, qq

    @inlined
    def search(x: Any, w: Any) -> Any:
        extreme = all_f32(0.0)
        for i in range(n):
            v = load_f32(x + 64 * i)
            extreme = where_less(absolute(extreme), absolute(v), v, extreme)
        unit = inverse_of(extreme)
        gain, scale = all_f32(0.0), all_f32(0.0)
        for t in range(2 * tries + 2):
            if t < tries:
                inverse = unit * (low - reach + step * t)
            elif t < 2 * tries:
                inverse = unit * (high - reach + step * (t - tries))
            else:
                inverse = inverse_of(scale)
            xq, qq = sums(x, w, inverse)
            s = xq * inverse_of(qq)
            g = s * xq
            scale = where_less(gain, g, s, scale)
            gain = where_less(gain, g, g, gain)
        return scale, extreme

    return search, sums


def _error(grid: Grid, n: int) -> Any:
    """(x, w, scale, offset) -> the error of n columns."""
    snap = grid.snap

    @inlined
    def error(x: Any, w: Any, scale: Any, offset: Any) -> Any:
        inverse, total = inverse_of(scale), all_f32(0.0)
        for i in range(n):
            y = load_f32(x + 64 * i) - offset
            r = y - scale * snap(y * inverse)
            total = fma(repeat_f32(w + 4 * i) * r, r, total)
        return total

    return error


def signed_block(grid: Grid, n: int, tries: int, reach: float) -> Any:
    """(x, w, scales) -> None: the scale of n columns as a float16, as float32 at `scales`.

    Rounding to float16 may undo a small gain; it is then the plain scale, which depends on the largest number alone.
    """
    search, _ = _signed_search(grid, n, tries, reach)
    error, low = _error(grid, n), grid.low

    @inlined
    def block(x: Any, w: Any, scales: Any) -> None:
        found, extreme = search(x, w)
        scale, plain, zero = _half(found), _half(extreme / all_f32(low)), all_f32(0.0)
        store_f32(scales, where_less(error(x, w, scale, zero), error(x, w, plain, zero), scale, plain))

    return block


def signed_super(grid: Grid, n: int, subs: int, low: int, high: int, tries: int, reach: float, rounds: int) -> Any:
    """(x, w, scales, small) -> d: `subs` groups of n columns get scales d * small, integers small in low..high.

    `scales` and `small` receive a vector for each group.
    """
    search, sums = _signed_search(grid, n, tries, reach)
    error, least, most = _error(grid, n), float(low), float(high)

    @inlined
    def block(x: Any, w: Any, scales: Any, small: Any) -> Any:
        extreme = all_f32(0.0)
        for j in range(subs):
            s, _ = search(x + 64 * n * j, w + 4 * n * j)
            store_f32(scales + 64 * j, s)
            extreme = where_less(absolute(extreme), absolute(s), s, extreme)
        d = _half(extreme * (1.0 / least))
        unit = inverse_of(d)
        for j in range(subs):
            store_f32(small + 64 * j, rounded(keep_in(load_f32(scales + 64 * j) * unit, least, most)))
        for round in range(rounds + 1):
            xq, qq = all_f32(0.0), all_f32(0.0)
            for j in range(subs):
                at, importance = x + 64 * n * j, w + 4 * n * j
                start = load_f32(small + 64 * j)
                best, chosen = all_f32(_HUGE), start
                for t in range(6):
                    if t < 3:
                        k = keep_in(start + (t - 1.0), least, most)
                    else:
                        k = keep_in(start * -1.0 + (t - 4.0), least, most)
                    e = error(at, importance, d * k, all_f32(0.0))
                    chosen = where_less(e, best, k, chosen)
                    best = where_less(e, best, e, best)
                store_f32(small + 64 * j, chosen)
                a, b = sums(at, importance, inverse_of(d * chosen))
                xq, qq = fma(chosen, a, xq), fma(chosen * chosen, b, qq)
            if round < rounds:
                d = _half(where_less(all_f32(0.0), qq, xq * inverse_of(qq), d))
        for j in range(subs):
            store_f32(scales + 64 * j, d * load_f32(small + 64 * j))
        return d

    return block


# --- scale * code + offset -----------------------------------------------------------------------------------------


def _affine_search(top: int, n: int, tries: int, reach: float, negative: bool) -> Any:
    """(x, w) -> scale and offset of n columns with codes 0..top; `negative`: the offset is at most 0.

    It tries scales and offsets that map the range of the numbers to 0..top, or to ranges whose ends differ from these
    by up to `reach` steps.
    """
    snap = integers(0, top, 0).snap
    most, step = float(top), 2 * reach / (tries - 1)

    @inlined
    def sums(x: Any, w: Any, base: Any, inverse: Any, shift: Any) -> Any:
        """The weighted sums of q, q^2 and (x - base) q, where q are the codes of (x - base) * inverse - shift."""
        q1, qq, yq = all_f32(0.0), all_f32(0.0), all_f32(0.0)
        for i in range(n):
            y = load_f32(x + 64 * i) - base
            q = snap(y * inverse - shift)
            wq = repeat_f32(w + 4 * i) * q
            q1, qq, yq = q1 + wq, fma(wq, q, qq), fma(wq, y, yq)
        return q1, qq, yq

    @inlined
    def search(x: Any, w: Any) -> Any:
        base, end = load_f32(x), load_f32(x)
        for i in range(1, n):
            v = load_f32(x + 64 * i)
            base, end = where_less(v, base, v, base), where_less(end, v, v, end)
        if negative:
            zero = all_f32(0.0)
            base, end = where_less(base, zero, base, zero), where_less(end, base, base, end)
        w1, y1 = all_f32(0.0), all_f32(0.0)
        for i in range(n):
            importance = repeat_f32(w + 4 * i)
            w1, y1 = w1 + importance, fma(importance, load_f32(x + 64 * i) - base, y1)
        unit = inverse_of(end - base)
        limit, none = base * -1.0, all_f32(0.0)
        gain, scale, offset = all_f32(-_HUGE), all_f32(0.0), all_f32(0.0)
        for t in range(tries * tries + 2):
            if t < tries * tries:
                a, b = -reach + step * (t // tries), -reach + step * (t % tries)
                inverse, shift = unit * (most + a + b), all_f32(a)
            else:
                inverse = inverse_of(scale)
                shift = offset * inverse
            q1, qq, yq = sums(x, w, base, inverse, shift)
            unique = _determined(w1 * qq, q1 * q1)
            # Codes that are all the same do not determine the offset, and zeros do not determine the scale.
            s = where_less(none, unique, (w1 * yq - y1 * q1) * unique, yq * inverse_of(qq))
            o = where_less(none, unique, (qq * y1 - q1 * yq) * unique, where_less(none, qq, none, y1 * inverse_of(w1)))
            if negative:
                s = where_less(limit, o, (yq - limit * q1) * inverse_of(qq), s)
                o = where_less(limit, o, limit, o)
            g = (s * yq + o * y1) * 2.0 - s * (s * qq + o * q1 * 2.0) - o * o * w1
            scale, offset = where_less(gain, g, s, scale), where_less(gain, g, o, offset)
            gain = where_less(gain, g, g, gain)
        return scale, base + offset, base, end

    return search


def affine_block(top: int, n: int, tries: int, reach: float) -> Any:
    """(x, w, scales) -> None: the scale and the offset of n columns, rounded to float16, as float32 at `scales` and 64
    bytes after it.

    Rounding may undo a small gain; they are then those that the least and the largest number alone determine.
    """
    search, error = _affine_search(top, n, tries, reach, False), _error(integers(0, top, 0), n)

    @inlined
    def block(x: Any, w: Any, scales: Any) -> None:
        found, away, base, end = search(x, w)
        scale, offset = _half(found), _half(away)
        plain, start = _half((end - base) / all_f32(top)), _half(base)
        a, b = error(x, w, scale, offset), error(x, w, plain, start)
        store_f32(scales, where_less(a, b, scale, plain))
        store_f32(scales + 64, where_less(a, b, offset, start))

    return block


def affine_super(top: int, n: int, subs: int, most: int, tries: int, reach: float, rounds: int) -> Any:
    """(x, w, scales, small) -> d, m: `subs` groups of n columns become d * k * code - m * l, integers k and l 0..most.

    `scales` receives for each group a vector of scales and one of offsets; `small` receives k and l in the same way.
    """
    search = _affine_search(top, n, tries, reach, True)
    grid = integers(0, top, 0)
    snap, error, largest = grid.snap, _error(grid, n), float(most)

    @inlined
    def block(x: Any, w: Any, scales: Any, small: Any) -> Any:
        d, m = all_f32(0.0), all_f32(0.0)
        for j in range(subs):
            s, o, _, _ = search(x + 64 * n * j, w + 4 * n * j)
            store_f32(scales + 128 * j, s)
            store_f32(scales + 128 * j + 64, o)
            d, m = where_less(d, s, s, d), where_less(m, o * -1.0, o * -1.0, m)
        d, m = _half(d * (1.0 / largest)), _half(m * (1.0 / largest))
        for j in range(subs):
            k = rounded(keep_in(load_f32(scales + 128 * j) * inverse_of(d), 0.0, largest))
            low = rounded(keep_in(load_f32(scales + 128 * j + 64) * inverse_of(m * -1.0), 0.0, largest))
            store_f32(small + 128 * j, k)
            store_f32(small + 128 * j + 64, low)
        for round in range(rounds + 1):
            kk, kl, ll, kx, lx = all_f32(0.0), all_f32(0.0), all_f32(0.0), all_f32(0.0), all_f32(0.0)
            for j in range(subs):
                at, importance = x + 64 * n * j, w + 4 * n * j
                k0, low0 = load_f32(small + 128 * j), load_f32(small + 128 * j + 64)
                best, k, low = all_f32(_HUGE), k0, low0
                for t in range(9):
                    k1 = keep_in(k0 + (t // 3 - 1.0), 0.0, largest)
                    low1 = keep_in(low0 + (t % 3 - 1.0), 0.0, largest)
                    e = error(at, importance, d * k1, m * low1 * -1.0)
                    k, low = where_less(e, best, k1, k), where_less(e, best, low1, low)
                    best = where_less(e, best, e, best)
                store_f32(small + 128 * j, k)
                store_f32(small + 128 * j + 64, low)
                if round < rounds:
                    scale, offset = d * k, m * low * -1.0
                    inverse = inverse_of(scale)
                    w1, x1, q1, qq, xq = all_f32(0.0), all_f32(0.0), all_f32(0.0), all_f32(0.0), all_f32(0.0)
                    for i in range(n):
                        v = load_f32(at + 64 * i)
                        u = repeat_f32(importance + 4 * i)
                        q = snap((v - offset) * inverse)
                        uq = u * q
                        w1, x1, q1 = w1 + u, fma(u, v, x1), q1 + uq
                        qq, xq = fma(uq, q, qq), fma(uq, v, xq)
                    kk, kl, ll = fma(k * k, qq, kk), fma(k * low, q1, kl), fma(low * low, w1, ll)
                    kx, lx = fma(k, xq, kx), fma(low, x1, lx)
            if round < rounds:
                # x ~ d * (k q) - m * low: the normal equations of d and m.
                unique = _determined(kk * ll, kl * kl)
                a, b = (kx * ll - lx * kl) * unique, (kx * kl - lx * kk) * unique
                alone = where_less(all_f32(0.0), ll, all_f32(0.0), kx * inverse_of(kk))  # no offsets at all
                a = where_less(all_f32(0.0), unique, a, alone)
                d = where_less(all_f32(0.0), a, _half(a), d)
                m = where_less(all_f32(0.0), b, _half(b), m)
        for j in range(subs):
            store_f32(scales + 128 * j, d * load_f32(small + 128 * j))
            store_f32(scales + 128 * j + 64, m * load_f32(small + 128 * j + 64) * -1.0)
        return d, m

    return block

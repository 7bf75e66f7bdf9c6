"""The parts of Triton's kernels that know how planes store weights (`planes.py`): one description for all types.

A kernel takes the planes low, high, scales, minima, d and dmin, the levels of codes, and these constants:
LOW, HIGH: bits of a code in the two planes of codes; OFFSET: of codes; LEVELS: whether codes stand for levels;
HALVES: scales of a group of 32 columns; MINIMA: whether there are minima; PRODUCTS: whether scales and minima are
multiplied by d and dmin.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from mistral_portable_torch.ggml import LAYOUTS, level_table
from mistral_portable_torch.planes import Planes

__all__ = ["arguments", "constants", "numbers", "scale_of", "weights_of"]


def arguments(planes: Planes) -> tuple[Tensor, ...]:
    """The planes and levels in a kernel's order. In place of those that the kind has not are its codes, which are not
    read."""
    low, *high = planes.codes
    levels = LAYOUTS[planes.kind].levels
    table = level_table(levels, low.device) if levels else None
    given = (high[0] if high else None, planes.scales, planes.minima, planes.d, planes.dmin, table)
    return low, *(low if plane is None else plane for plane in given)


def constants(planes: Planes) -> dict[str, Any]:
    """The constants of the planes' kind."""
    bits = LAYOUTS[planes.kind].bits
    return {
        "LOW": bits[0],
        "HIGH": sum(bits[1:]),
        "OFFSET": LAYOUTS[planes.kind].offset,
        "LEVELS": bool(LAYOUTS[planes.kind].levels),
        "HALVES": planes.scales.shape[-1] // planes.codes[0].shape[-2],
        "MINIMA": planes.minima is not None,
        "PRODUCTS": planes.d is not None,
    }


@triton.jit
def numbers(
    low, high, levels, PLACE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, OFFSET: tl.constexpr,
    LEVELS: tl.constexpr,
):  # fmt: skip
    """The codes at a place of their words, minus OFFSET, or the levels that they stand for, float32.

    Nothing is converted, which would take several clocks: a code at bit `at` of a float32 with the exponent of
    2^(23 - at) makes it 2^(23 - at) + code. It must end below bit 23, so codes that lie higher are shifted down.
    """
    if LEVELS:
        # Threads of a warp have the levels between them: a load of each would go through shared memory.
        place = (low >> (LOW * PLACE)) & (2**LOW - 1)
        return tl.gather(tl.load(levels + tl.arange(0, 2**LOW)), place.reshape(place.numel), 0).reshape(place.shape)
    down: tl.constexpr = 16 if LOW * PLACE + LOW + HIGH > 23 else 0
    at: tl.constexpr = LOW * PLACE - down
    bits = ((low.to(tl.int32) >> down) & ((2**LOW - 1) << at)) | ((150 - at) << 23)
    if HIGH > 0:
        up: tl.constexpr = at + LOW - HIGH * PLACE
        word = high.to(tl.int32)
        bits |= ((word << up) if up > 0 else (word >> -up)) & ((2**HIGH - 1) << (at + LOW))
    return bits.to(tl.float32, bitcast=True) - (2 ** (23 - at) + OFFSET)


@triton.jit
def scale_of(scales, d, group, HALF: tl.constexpr, HALVES: tl.constexpr, PRODUCTS: tl.constexpr):
    """The scales of the columns 0 .. 15 (HALF 0), 16 .. 31 (HALF 1), or all of them (HALVES 1) of groups, float32.

    group: their numbers among all of a matrix, of which 8 have a d. For minima likewise.
    """
    found = tl.load(scales + group * HALVES + HALF).to(tl.float32)
    return tl.load(d + group // 8).to(tl.float32) * found if PRODUCTS else found


@triton.jit
def weights_of(
    low, high, scales, minima, d, dmin, levels, group,
    COUNT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, OFFSET: tl.constexpr, LEVELS: tl.constexpr,
    HALVES: tl.constexpr, MINIMA: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """The weights of groups [COUNT], float32 [COUNT, 32]."""
    word = group[:, None] * 4 + tl.arange(0, 4)[None, :]
    lower = tl.load(low + word)
    upper = tl.load(high + word) if HIGH > 0 else lower
    first = _half(
        lower, upper, scales, minima, d, dmin, levels, group, 0, LOW, HIGH, OFFSET, LEVELS, HALVES, MINIMA, PRODUCTS
    )
    second = _half(
        lower, upper, scales, minima, d, dmin, levels, group, 1, LOW, HIGH, OFFSET, LEVELS, HALVES, MINIMA, PRODUCTS
    )
    return tl.join(first, second).permute(0, 4, 2, 3, 1).reshape(COUNT, 32)


@triton.jit
def _half(
    lower, upper, scales, minima, d, dmin, levels, group,
    HALF: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, OFFSET: tl.constexpr, LEVELS: tl.constexpr,
    HALVES: tl.constexpr, MINIMA: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Weights at 4 places, half of each group: [COUNT, words, bit 1 of the place, bit 0 of it]."""
    even = tl.join(
        numbers(lower, upper, levels, 4 * HALF, LOW, HIGH, OFFSET, LEVELS),
        numbers(lower, upper, levels, 4 * HALF + 2, LOW, HIGH, OFFSET, LEVELS),
    )
    odd = tl.join(
        numbers(lower, upper, levels, 4 * HALF + 1, LOW, HIGH, OFFSET, LEVELS),
        numbers(lower, upper, levels, 4 * HALF + 3, LOW, HIGH, OFFSET, LEVELS),
    )
    which: tl.constexpr = HALF * (HALVES - 1)
    weights = tl.join(even, odd) * scale_of(scales, d, group, which, HALVES, PRODUCTS)[:, None, None, None]
    if MINIMA:
        weights -= scale_of(minima, dmin, group, which, HALVES, PRODUCTS)[:, None, None, None]
    return weights

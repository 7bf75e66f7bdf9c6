"""The parts of Triton's kernels that know how planes store weights (`planes.py`): one description for all types.

A kernel takes the planes low, high, scales, minima, d and dmin, and these constants:
LOW, HIGH: bits of a code in the two planes of codes; OFFSET: of codes; HALVES: scales of a group of 32 columns;
MINIMA: whether there are minima; PRODUCTS: whether scales and minima are multiplied by d and dmin.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from mistral_portable_torch.ggml import LAYOUTS
from mistral_portable_torch.planes import Planes

__all__ = ["arguments", "constants", "minimum_of", "numbers", "scale_of"]


def arguments(planes: Planes) -> tuple[Tensor, ...]:
    """The planes in a kernel's order. In place of those that the kind has not are its codes, which are not read."""
    low, *high = planes.codes
    given = (high[0] if high else None, planes.scales, planes.minima, planes.d, planes.dmin)
    return low, *(low if plane is None else plane for plane in given)


def constants(planes: Planes) -> dict[str, Any]:
    """The constants of the planes' kind."""
    bits = LAYOUTS[planes.kind].bits
    return {
        "LOW": bits[0],
        "HIGH": sum(bits[1:]),
        "OFFSET": LAYOUTS[planes.kind].offset,
        "HALVES": planes.scales.shape[-1] // planes.codes[0].shape[-2],
        "MINIMA": planes.minima is not None,
        "PRODUCTS": planes.d is not None,
    }


@triton.jit
def numbers(low, high, PLACE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, OFFSET: tl.constexpr):
    """The codes at a place of their words, minus OFFSET, float32.

    Nothing is converted, which would take several clocks: a code that lies at bit `at` of a float32 with the exponent
    of 2^(23 - at) makes it 2^(23 - at) + code. It must end below bit 23, so codes that lie higher are shifted by 12.
    """
    begin: tl.constexpr = LOW * PLACE % 32
    down: tl.constexpr = 12 if begin + LOW + HIGH > 23 else 0
    at: tl.constexpr = begin - down
    word = (low >> (LOW * PLACE - begin)).to(tl.int32)
    bits = ((word >> down) & ((2**LOW - 1) << at)) | ((150 - at) << 23)
    if HIGH > 0:
        up: tl.constexpr = at + LOW - HIGH * PLACE
        bits |= (high.to(tl.int32) << up) & ((2**HIGH - 1) << (at + LOW))
    return bits.to(tl.float32, bitcast=True) - (2 ** (23 - at) + OFFSET)


@triton.jit
def scale_of(scales, d, group, HALF: tl.constexpr, HALVES: tl.constexpr, PRODUCTS: tl.constexpr):
    """The scales of the columns 0 .. 15 (HALF 0), 16 .. 31 (HALF 1), or all of them (HALVES 1) of groups, float32.

    group: their numbers among all of a matrix, of which 8 have a d. For minima likewise.
    """
    found = tl.load(scales + group * HALVES + HALF).to(tl.float32)
    return tl.load(d + group // 8).to(tl.float32) * found if PRODUCTS else found

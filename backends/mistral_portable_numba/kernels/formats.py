"""Unpacking of codes, scales and offsets from tiles, for each ggml block format (see `layouts.py` for tiles).

The meaning of a block's bits is defined by ggml (`ggml-quants.c`): a weight is `scale * (code - zero) + offset`. In
blocks of 256 columns a scale is a float16 times a small integer, an offset another float16 times another one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mistral_portable_numba.compiler.simd.byte_dots import table_of
from mistral_portable_numba.compiler.simd.convert import as_bytes, high_f16, low_f16, signed_byte, to_f32
from mistral_portable_numba.compiler.simd.load_store import load_bytes, load_f16, load_i32
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.words import minus_32, twice, twice_signed, two_bytes
from mistral_portable_numba.layouts import BLOCKS, BlockLayout

__all__ = ["FORMATS", "Format"]

# The values of the 4-bit codes of IQ4_NL and IQ4_XS (ggml `kvalues_iq4nl`).
_iq4_values = table_of(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Integers:
    """The integers that multiply codes in blocks of 256 columns, as words (`compiler/simd/words.py`).

    whole(p), least(p): the floats that multiply the integers of scales and of offsets.
    small(p, s, h): the integer of step h of 32 columns, as both words.
    minima(p, s): those of the offsets of two steps: 0 and 1 of 32 columns, or of these 32 columns and the next ones.
    """

    whole: Callable[..., Any]
    small: Callable[..., Any]
    least: Callable[..., Any] | None = None
    minima: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Format:
    """How a format is unpacked. p is the address of a tile block, s the index of 32 columns in it.

    codes(p, s, k): the codes of columns 4k..4k+3 of these 32, as bytes: int8 if `signed`, else 0..127.
    scale(p, s, h), offset(p, s, h): the scale and the offset of step h of these 32 columns (0, or 0 and 1).
    zero: the zero point, which is subtracted from the codes. bits: of a code.
    """

    layout: BlockLayout
    bits: int
    signed: bool
    zero: int
    codes: Callable[..., Any]
    scale: Callable[..., Any]
    offset: Callable[..., Any] | None = None
    integers: Integers | None = None

    @property
    def dwords(self) -> int:
        """Dwords of a step of which two products of each, of a code less the zero point and an int8, make an int16.

        q4_k: 8, as 8 x 2 x 15 x 127 = 30,480; q5_k: 4; q6_k: 4, as 4 x 2 x 32 x 127 = 32,512 with the zero point 32.
        """
        if self.signed:
            return 1
        most = max(2**self.bits - 1 - self.zero, self.zero)
        return next(count for count in (8, 4, 2, 1) if count * 2 * most * 127 < 2**15 and count * 4 <= self.layout.step)


@inlined
def _nibbles(p: Any, k: Any) -> Any:
    """Columns 4k..4k+3 from 16 bytes at vector p: low nibbles are the columns 0..15, high ones 16..31."""
    return load_bytes(p + 64 * k) & 15 if k < 4 else load_bytes(p + 64 * (k - 4)) >> 4


@inlined
def _fifth_bits(p: Any, k: Any) -> Any:
    """Bits 4k..4k+3 of each lane of the vector at p, as 16 or 0 in the four bytes of the lane."""
    bits = (load_i32(p) >> (4 * k)) & 15
    return as_bytes(((bits * 0x00204081) & 0x01010101) << 4)


@inlined
def _half_after(p: Any, vectors: Any) -> Any:
    return load_f16(p + 64 * vectors)


# --- 32 columns ----------------------------------------------------------------------------------------------------


@inlined
def _q4_0_codes(p: Any, s: Any, k: Any) -> Any:
    return _nibbles(p, k)


@inlined
def _q4_0_scale(p: Any, s: Any, h: Any) -> Any:
    return _half_after(p, 4)


@inlined
def _q4_1_codes(p: Any, s: Any, k: Any) -> Any:
    return _nibbles(p + 64, k)


@inlined
def _first_low(p: Any, s: Any, h: Any) -> Any:
    return low_f16(load_i32(p))


@inlined
def _first_high(p: Any, s: Any, h: Any) -> Any:
    return high_f16(load_i32(p))


@inlined
def _q5_0_codes(p: Any, s: Any, k: Any) -> Any:
    return _nibbles(p + 64, k) | _fifth_bits(p, k)


@inlined
def _q5_0_scale(p: Any, s: Any, h: Any) -> Any:
    return _half_after(p, 5)


@inlined
def _q5_1_codes(p: Any, s: Any, k: Any) -> Any:
    return _nibbles(p + 128, k) | _fifth_bits(p + 64, k)


@inlined
def _q8_0_codes(p: Any, s: Any, k: Any) -> Any:
    return load_bytes(p + 64 * k)


@inlined
def _q8_0_scale(p: Any, s: Any, h: Any) -> Any:
    return _half_after(p, 8)


@inlined
def _iq4_nl_codes(p: Any, s: Any, k: Any) -> Any:
    return _iq4_values(_nibbles(p, k))


# --- 256 columns, q*_k: d, dmin and small integers that multiply them ----------------------------------------------


@inlined
def _six_bit_scale(p: Any, s: Any) -> Any:
    """The scale of sub-block s from the 12 bytes at vector p (ggml `get_scale_min_k4`)."""
    if s < 4:
        return (load_i32(p) >> (8 * s)) & 63
    t = s - 4
    return ((load_i32(p + 128) >> (8 * t)) & 15) | (((load_i32(p) >> (8 * t + 6)) & 3) << 4)


@inlined
def _six_bit_min(p: Any, s: Any) -> Any:
    if s < 4:
        return (load_i32(p + 64) >> (8 * s)) & 63
    t = s - 4
    return ((load_i32(p + 128) >> (8 * t + 4)) & 15) | (((load_i32(p + 64) >> (8 * t + 6)) & 3) << 4)


@inlined
def _q4_k_scale(p: Any, s: Any, h: Any) -> Any:
    return low_f16(load_i32(p)) * to_f32(_six_bit_scale(p + 64, s))


@inlined
def _q4_k_offset(p: Any, s: Any, h: Any) -> Any:
    return high_f16(load_i32(p)) * (to_f32(_six_bit_min(p + 64, s)) * -1.0)


@inlined
def _paired_nibbles(p: Any, s: Any, k: Any) -> Any:
    """Codes from 32 bytes per 64 columns: low nibbles are the even sub-block, high ones the odd sub-block."""
    pair = load_bytes(p + 512 * (s // 2) + 64 * k)
    return pair & 15 if s % 2 == 0 else pair >> 4


@inlined
def _q4_k_codes(p: Any, s: Any, k: Any) -> Any:
    return _paired_nibbles(p + 64 * 4, s, k)


@inlined
def _q5_k_codes(p: Any, s: Any, k: Any) -> Any:
    return _paired_nibbles(p + 64 * 12, s, k) | (((load_bytes(p + 64 * (4 + k)) >> s) & 1) << 4)


@inlined
def _q6_k_codes(p: Any, s: Any, k: Any) -> Any:
    n, t = s // 4, s % 4
    low = load_bytes(p + 64 * (16 * n + 8 * (t % 2) + k))
    high = (load_bytes(p + 64 * (32 + 8 * n + k)) >> (2 * t)) & 3
    return (low & 15 if t < 2 else low >> 4) | (high << 4)


@inlined
def _q6_k_scale(p: Any, s: Any, h: Any) -> Any:
    j = 2 * s + h
    return _half_after(p, 52) * to_f32(signed_byte(load_i32(p + 64 * (48 + j // 4)), j % 4))


@inlined
def _two_bits(p: Any, s: Any, k: Any) -> Any:
    """Codes from 32 bytes per 128 columns: bits 2t, 2t + 1 are sub-block t of four."""
    return (load_bytes(p + 64 * (8 * (s // 4) + k)) >> (2 * (s % 4))) & 3


@inlined
def _q3_k_codes(p: Any, s: Any, k: Any) -> Any:
    return _two_bits(p + 64 * 8, s, k) | (((load_bytes(p + 64 * k) >> s) & 1) << 2)


@inlined
def _q3_k_scale(p: Any, s: Any, h: Any) -> Any:
    j = 2 * s + h
    low = (load_i32(p + 64 * (24 + j % 8 // 4)) >> (8 * (j % 4) + 4 * (j // 8))) & 15
    high = (load_i32(p + 64 * 26) >> (8 * (j % 4) + 2 * (j // 4))) & 3
    return _half_after(p, 27) * to_f32((low | (high << 4)) - 32)


@inlined
def _q2_k_codes(p: Any, s: Any, k: Any) -> Any:
    return _two_bits(p + 64 * 4, s, k)


@inlined
def _q2_k_scale(p: Any, s: Any, h: Any) -> Any:
    j = 2 * s + h
    return low_f16(load_i32(p + 64 * 20)) * to_f32((load_i32(p + 64 * (j // 4)) >> (8 * (j % 4))) & 15)


@inlined
def _q2_k_offset(p: Any, s: Any, h: Any) -> Any:
    j = 2 * s + h
    small = to_f32((load_i32(p + 64 * (j // 4)) >> (8 * (j % 4) + 4)) & 15)
    return high_f16(load_i32(p + 64 * 20)) * (small * -1.0)


@inlined
def _iq4_xs_codes(p: Any, s: Any, k: Any) -> Any:
    return _iq4_values(_nibbles(p + 64 * (2 + 4 * s), k))


@inlined
def _iq4_xs_scale(p: Any, s: Any, h: Any) -> Any:
    low = (load_i32(p + 64) >> (4 * s)) & 15
    high = (load_i32(p) >> (16 + 2 * s)) & 3
    return low_f16(load_i32(p)) * to_f32((low | (high << 4)) - 32)


# --- 256 columns: the integers as words ----------------------------------------------------------------------------

_twice = tuple(twice(index) for index in range(4))
_twice_signed = tuple(twice_signed(index) for index in range(4))
_twice0, _twice1, _twice2, _twice3 = _twice
_first_pair, _last_pair = two_bytes(0), two_bytes(2)


@inlined
def _first_as_whole(p: Any) -> Any:
    return low_f16(load_i32(p))


@inlined
def _first_as_least(p: Any) -> Any:
    return high_f16(load_i32(p)) * -1.0


def _from_four(four: Callable[..., Any], words: tuple[Any, ...]) -> Any:
    """The function (p, s, h) of the integer of step j = 2s + h: byte j % 4 of four(p, j // 4)."""
    zeroth, first, second, third = words

    @inlined
    def small(p: Any, s: Any, h: Any) -> Any:
        bytes_of = four(p, s // 2)
        if s % 2 == 0:
            return zeroth(bytes_of) if h == 0 else first(bytes_of)
        return second(bytes_of) if h == 0 else third(bytes_of)

    return small


@inlined
def _six_bit_scales(p: Any, s: Any) -> Any:
    """The integers of four sub-blocks, s..s + 3, as bytes."""
    if s < 4:
        return load_bytes(p + 64) & 63
    return (load_bytes(p + 192) & 15) | ((load_bytes(p + 64) >> 2) & 0x30)


@inlined
def _six_bit_minima(p: Any, s: Any) -> Any:
    if s < 4:
        return load_bytes(p + 128) & 63
    return (load_bytes(p + 192) >> 4) | ((load_bytes(p + 128) >> 2) & 0x30)


@inlined
def _six_bit_small(p: Any, s: Any, h: Any) -> Any:
    four = _six_bit_scales(p, s)
    if s % 4 < 2:
        return _twice0(four) if s % 4 == 0 else _twice1(four)
    return _twice2(four) if s % 4 == 2 else _twice3(four)


@inlined
def _six_bit_least(p: Any, s: Any) -> Any:
    return _first_pair(_six_bit_minima(p, s)) if s % 4 == 0 else _last_pair(_six_bit_minima(p, s))


@inlined
def _q6_k_whole(p: Any) -> Any:
    return _half_after(p, 52)


@inlined
def _q6_k_four(p: Any, n: Any) -> Any:
    return load_bytes(p + 64 * (48 + n))


@inlined
def _q3_k_whole(p: Any) -> Any:
    return _half_after(p, 27)


@inlined
def _q3_k_four(p: Any, n: Any) -> Any:
    low = (load_bytes(p + 64 * (24 + n % 2)) >> (4 * (n // 2))) & 15
    return low | (((load_bytes(p + 64 * 26) >> (2 * n)) & 3) << 4)


_q3_k_biased = _from_four(_q3_k_four, _twice)


@inlined
def _q3_k_small(p: Any, s: Any, h: Any) -> Any:
    return minus_32(_q3_k_biased(p, s, h))


@inlined
def _q2_k_whole(p: Any) -> Any:
    return low_f16(load_i32(p + 64 * 20))


@inlined
def _q2_k_least(p: Any) -> Any:
    return high_f16(load_i32(p + 64 * 20)) * -1.0


@inlined
def _q2_k_four(p: Any, n: Any) -> Any:
    return load_bytes(p + 64 * n) & 15


@inlined
def _q2_k_minima(p: Any, s: Any) -> Any:
    four = load_bytes(p + 64 * (s // 2)) >> 4
    return _first_pair(four) if s % 2 == 0 else _last_pair(four)


@inlined
def _iq4_xs_small(p: Any, s: Any, h: Any) -> Any:
    low = (load_i32(p + 64) >> (4 * s)) & 15
    high = (load_i32(p) >> (16 + 2 * s)) & 3
    return minus_32((low | (high << 4)) * 0x10001)


_SIX_BITS = Integers(_first_as_whole, _six_bit_small, _first_as_least, _six_bit_least)

FORMATS: dict[str, Format] = {
    "q4_0": Format(BLOCKS["q4_0"], 4, False, 8, _q4_0_codes, _q4_0_scale),
    "q4_1": Format(BLOCKS["q4_1"], 4, False, 0, _q4_1_codes, _first_low, _first_high),
    "q5_0": Format(BLOCKS["q5_0"], 5, False, 16, _q5_0_codes, _q5_0_scale),
    "q5_1": Format(BLOCKS["q5_1"], 5, False, 0, _q5_1_codes, _first_low, _first_high),
    "q8_0": Format(BLOCKS["q8_0"], 8, True, 0, _q8_0_codes, _q8_0_scale),
    "iq4_nl": Format(BLOCKS["iq4_nl"], 8, True, 0, _iq4_nl_codes, _q4_0_scale),
    "q2_k": Format(
        BLOCKS["q2_k"],
        2,
        False,
        0,
        _q2_k_codes,
        _q2_k_scale,
        _q2_k_offset,
        Integers(_q2_k_whole, _from_four(_q2_k_four, _twice), _q2_k_least, _q2_k_minima),
    ),
    "q3_k": Format(BLOCKS["q3_k"], 3, False, 4, _q3_k_codes, _q3_k_scale, integers=Integers(_q3_k_whole, _q3_k_small)),
    "q4_k": Format(BLOCKS["q4_k"], 4, False, 0, _q4_k_codes, _q4_k_scale, _q4_k_offset, _SIX_BITS),
    "q5_k": Format(BLOCKS["q5_k"], 5, False, 0, _q5_k_codes, _q4_k_scale, _q4_k_offset, _SIX_BITS),
    "q6_k": Format(
        BLOCKS["q6_k"],
        6,
        False,
        32,
        _q6_k_codes,
        _q6_k_scale,
        integers=Integers(_q6_k_whole, _from_four(_q6_k_four, _twice_signed)),
    ),
    "iq4_xs": Format(
        BLOCKS["iq4_xs"], 8, True, 0, _iq4_xs_codes, _iq4_xs_scale, integers=Integers(_first_as_whole, _iq4_xs_small)
    ),
}
"""Formats by the names of BLOCKS."""

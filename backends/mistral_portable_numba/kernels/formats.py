"""Unpacking of codes, scales and offsets from tiles, for each ggml block format (see `layouts.py` for tiles).

The meaning of a block's bits is defined by ggml (`ggml-quants.c`): a weight is `scale * (code - zero) + offset`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mistral_portable_numba.compiler.simd.byte_dots import table_of
from mistral_portable_numba.compiler.simd.convert import as_bytes, high_f16, low_f16, signed_byte, to_f32
from mistral_portable_numba.compiler.simd.load_store import load_bytes, load_f16, load_i32
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.layouts import BLOCKS, BlockLayout

__all__ = ["FORMATS", "Format"]

# The values of the 4-bit codes of IQ4_NL and IQ4_XS (ggml `kvalues_iq4nl`).
_iq4_values = table_of(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Format:
    """How a format is unpacked. p is the address of a tile block, s the index of 32 columns in it.

    codes(p, s, k): the codes of columns 4k..4k+3 of these 32, as bytes: int8 if `signed`, else 0..127.
    scale(p, s, h), offset(p, s, h): the scale and the offset of step h of these 32 columns (0, or 0 and 1).
    zero: the zero point, which is subtracted from the codes.
    """

    layout: BlockLayout
    signed: bool
    zero: int
    codes: Callable[..., Any]
    scale: Callable[..., Any]
    offset: Callable[..., Any] | None = None


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


FORMATS: dict[str, Format] = {
    "q4_0": Format(BLOCKS["q4_0"], False, 8, _q4_0_codes, _q4_0_scale),
    "q4_1": Format(BLOCKS["q4_1"], False, 0, _q4_1_codes, _first_low, _first_high),
    "q5_0": Format(BLOCKS["q5_0"], False, 16, _q5_0_codes, _q5_0_scale),
    "q5_1": Format(BLOCKS["q5_1"], False, 0, _q5_1_codes, _first_low, _first_high),
    "q8_0": Format(BLOCKS["q8_0"], True, 0, _q8_0_codes, _q8_0_scale),
    "iq4_nl": Format(BLOCKS["iq4_nl"], True, 0, _iq4_nl_codes, _q4_0_scale),
    "q2_k": Format(BLOCKS["q2_k"], False, 0, _q2_k_codes, _q2_k_scale, _q2_k_offset),
    "q3_k": Format(BLOCKS["q3_k"], False, 4, _q3_k_codes, _q3_k_scale),
    "q4_k": Format(BLOCKS["q4_k"], False, 0, _q4_k_codes, _q4_k_scale, _q4_k_offset),
    "q5_k": Format(BLOCKS["q5_k"], False, 0, _q5_k_codes, _q4_k_scale, _q4_k_offset),
    "q6_k": Format(BLOCKS["q6_k"], False, 32, _q6_k_codes, _q6_k_scale),
    "iq4_xs": Format(BLOCKS["iq4_xs"], True, 0, _iq4_xs_codes, _iq4_xs_scale),
}
"""Formats by the names of BLOCKS."""

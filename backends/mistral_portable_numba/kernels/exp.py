"""exp of 16 numbers."""

from typing import Any

from mistral_portable_numba.compiler.simd.convert import nearest, to_f32
from mistral_portable_numba.compiler.simd.lanes import all_f32, fma, keep_in, power_of_two
from mistral_portable_numba.compiler.simd.operation import inlined

__all__ = ["exp"]


@inlined
def exp(x: Any) -> Any:
    """e^x within 2 units in the last place; x is first limited to -87..88, NaN stays.

    x = n ln 2 + r with |r| <= ln(2)/2: 2^n times a Taylor polynomial of r (Cody & Waite's reduction in two parts).
    """
    x = keep_in(x, -87.0, 88.0)
    n = nearest(x * 1.4426950408889634)
    whole = to_f32(n)
    r = fma(whole, all_f32(-0.693359375), x)
    r = fma(whole, all_f32(2.12194440e-4), r)
    y = fma(all_f32(1.0 / 5040.0), r, all_f32(1.0 / 720.0))
    y = fma(y, r, all_f32(1.0 / 120.0))
    y = fma(y, r, all_f32(1.0 / 24.0))
    y = fma(y, r, all_f32(1.0 / 6.0))
    y = fma(y, r, all_f32(0.5))
    y = fma(y, r, all_f32(1.0))
    y = fma(y, r, all_f32(1.0))
    return y * power_of_two(n)

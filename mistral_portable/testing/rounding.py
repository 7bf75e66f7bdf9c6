"""How programs round: to a float type, and to int8 in blocks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EPSILON", "round_to", "round_to_int8"]

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Distance from 1 to the next number of each float type: twice the unit roundoff."""


def round_to(x: NDArray[Any], dtype: str) -> NDArray[Any]:
    """x in float32 (float64 for "float64") rounded to the nearest number of `dtype`: 1.01 -> 1.0078 in bfloat16."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)  # ties to even
        return rounded.view(np.float32)
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    return x.astype(dtype)


def round_to_int8(
    x: NDArray[Any], block: int, nudge: NDArray[Any] | float = 0.0, scale_dtype: str = "float32"
) -> NDArray[Any]:
    """x [..., N] in its own dtype, as whole multiples -127 .. 127 of a scale, max|x| / 127 of each block of columns.

    The last block may be shorter. `nudge` moves the numbers before they are rounded, in steps of the scale.
    Example: [3, -126.6, 127, 254] in blocks of 3 -> [3, -127, 127, 254]; the last block has the scale 2.
    """
    columns = x.shape[-1]
    largest = np.maximum.reduceat(np.abs(x), np.arange(0, columns, block), axis=-1)
    scale = np.repeat(round_to(largest / 127, scale_dtype), block, axis=-1)[..., :columns]
    steps = np.divide(x, scale, out=np.zeros_like(x), where=scale > 0)
    rounded: NDArray[Any] = np.clip(np.rint(steps + nudge), -127, 127) * scale
    return rounded.astype(x.dtype)

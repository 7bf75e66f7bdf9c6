"""Matrix products of tiles, in Triton."""

import triton
import triton.language as tl

__all__ = ["INTERPRETED", "product"]


@triton.jit
def product(a, b, added, INTERPRETED: tl.constexpr):
    """a b + added. Triton's interpreter multiplies the bits of bfloat16 as integers: it gets float32, of equal sums."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, added)


INTERPRETED = not isinstance(product, triton.JITFunction)
"""Whether Triton's interpreter runs the kernels of this process."""

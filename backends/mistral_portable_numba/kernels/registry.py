"""Every kernel by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from mistral_portable_numba.kernels.activations import quantize_kernel
from mistral_portable_numba.kernels.attention import attention_kernel
from mistral_portable_numba.kernels.dense import DENSE, dense_kernel
from mistral_portable_numba.kernels.experts import add_rows_kernel, clear_kernel, route_kernel
from mistral_portable_numba.kernels.formats import FORMATS
from mistral_portable_numba.kernels.kv import KV_FORMATS, store_kernel
from mistral_portable_numba.kernels.linear import linear_kernel
from mistral_portable_numba.kernels.pack import pack_kernel
from mistral_portable_numba.kernels.probes import dot4_probe, fma_probe, read_probe
from mistral_portable_numba.kernels.rows import add_kernel, rms_norm_kernel, rope_kernel, silu_mul_kernel, take_kernel
from mistral_portable_numba.kernels.tape import tape_kernel

__all__ = ["KERNELS"]


def _any(factory: Callable[..., Any], *arguments: Any) -> Callable[[int], Any]:
    """A kernel that does not depend on how many tokens an instruction set takes at once."""
    return lambda tokens: factory(*arguments)


KERNELS: dict[str, Callable[[int], Any]] = {
    **{f"linear_{name}": partial(linear_kernel, fmt) for name, fmt in FORMATS.items()},
    **{f"linear_{dtype}": _any(dense_kernel, dtype) for dtype in DENSE},
    **{f"attention_{kv}": _any(attention_kernel, kv) for kv in KV_FORMATS},
    **{f"store_keys_{kv}": _any(store_kernel, kv, True) for kv in KV_FORMATS},
    **{f"store_values_{kv}": _any(store_kernel, kv, False) for kv in KV_FORMATS},
    "quantize": quantize_kernel,
    "rms_norm": _any(rms_norm_kernel),
    "rope": _any(rope_kernel),
    "silu_mul": _any(silu_mul_kernel),
    "add": _any(add_kernel),
    "take": _any(take_kernel),
    "route": _any(route_kernel),
    "clear": _any(clear_kernel),
    "add_rows": _any(add_rows_kernel),
    "pack": _any(pack_kernel),
    "tape": _any(tape_kernel),
    "probe_read": _any(read_probe),
    "probe_dot4": dot4_probe,
    "probe_fma": fma_probe,
}
"""Name -> the kernel as a Python function, for an instruction set that takes so many tokens at once."""

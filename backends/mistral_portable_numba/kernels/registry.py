"""Every kernel by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from mistral_portable_numba.kernels.activations import quantize_kernel
from mistral_portable_numba.kernels.attention import attention_kernel
from mistral_portable_numba.kernels.dense import DENSE, dense_kernel
from mistral_portable_numba.kernels.formats import FORMATS
from mistral_portable_numba.kernels.kv import KV_FORMATS, store_kernel
from mistral_portable_numba.kernels.linear import linear_kernel
from mistral_portable_numba.kernels.pack import pack_kernel
from mistral_portable_numba.kernels.probes import dot4_probe, fma_probe, read_probe
from mistral_portable_numba.kernels.rows import add_kernel, rms_norm_kernel, rope_kernel, silu_mul_kernel, take_kernel
from mistral_portable_numba.kernels.tape import tape_kernel

__all__ = ["KERNELS"]

KERNELS: dict[str, Callable[[int], Any]] = {
    **{f"linear_{name}": partial(linear_kernel, fmt) for name, fmt in FORMATS.items()},
    **{f"linear_{dtype}": lambda tokens, dtype=dtype: dense_kernel(dtype) for dtype in DENSE},  # type: ignore[misc]
    **{f"attention_{kv}": lambda tokens, kv=kv: attention_kernel(kv) for kv in KV_FORMATS},  # type: ignore[misc]
    **{f"store_keys_{kv}": lambda tokens, kv=kv: store_kernel(kv, True) for kv in KV_FORMATS},  # type: ignore[misc]
    **{f"store_values_{kv}": lambda tokens, kv=kv: store_kernel(kv, False) for kv in KV_FORMATS},  # type: ignore[misc]
    "quantize": lambda tokens: quantize_kernel(),
    "rms_norm": lambda tokens: rms_norm_kernel(),
    "rope": lambda tokens: rope_kernel(),
    "silu_mul": lambda tokens: silu_mul_kernel(),
    "add": lambda tokens: add_kernel(),
    "take": lambda tokens: take_kernel(),
    "pack": lambda tokens: pack_kernel(),
    "tape": lambda tokens: tape_kernel(),
    "probe_read": lambda tokens: read_probe(),
    "probe_dot4": dot4_probe,
    "probe_fma": fma_probe,
}
"""Name -> the kernel as a Python function, for an instruction set that takes so many tokens at once."""

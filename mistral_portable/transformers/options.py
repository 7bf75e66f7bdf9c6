"""dtype, device_map and attn_implementation, as transformers spells them, for a backend."""

import warnings
from typing import Any

from mistral_portable.errors import InputError
from mistral_portable.executor import ExecutorOptions

__all__ = ["backend_options"]

_ATTENTION = {"flash_attention_2": "flash_attn", "sdpa": "sdpa", "eager": "eager", "flex_attention": "flex"}
_HALF = ("float16", "bfloat16")


def backend_options(
    backend: str, dtype: Any = None, device_map: Any = None, attn_implementation: str | None = None
) -> ExecutorOptions:
    """What the executor is told. Where a backend has no choice, a warning says what happens instead.

    dtype: None and "auto" leave it to the backend; "float16", "torch.float16", torch.float16 and np.float16 are the
    same. device_map: "auto", or a device. Raises InputError for others.
    """
    name = _dtype(dtype)
    if name in _HALF and backend in ("numba", "reference"):
        warnings.warn(
            f"backend {backend!r} computes in float32, not in {name}; the answers are the better for it", stacklevel=3
        )
        name = None
    if attn_implementation is not None and attn_implementation not in _ATTENTION:
        raise InputError(f"attn_implementation={attn_implementation!r}: choose one of {', '.join(_ATTENTION)}")
    if attn_implementation is not None and backend != "torch":
        warnings.warn(f"backend {backend!r} has an attention of its own, not {attn_implementation}", stacklevel=3)
    if device_map is not None and not isinstance(device_map, str | int):
        raise InputError(f"device_map={device_map!r:.60}: pass 'auto' or one device")
    device = f"cuda:{device_map}" if isinstance(device_map, int) else device_map
    if device not in (None, "auto") and backend != "torch":
        raise InputError(f"device_map={device_map!r}: backend {backend!r} has no choice of it; pass backend='torch'")
    return ExecutorOptions(
        dtype=name,
        device=None if device == "auto" else device,
        attention=_ATTENTION[attn_implementation] if attn_implementation and backend == "torch" else None,
    )


def _dtype(dtype: Any) -> str | None:
    if dtype is None or dtype == "auto":
        return None
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype))
    name = name.removeprefix("torch.")
    if name not in ("float32", "float64", *_HALF):
        raise InputError(f"dtype={dtype!r}: choose 'auto', 'float32', 'float16' or 'bfloat16'")
    return name

"""Names of the attention kernels, and the reasons why one cannot run; torch is imported only for a CUDA GPU."""

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

__all__ = ["KERNELS", "TRANSFORMERS_NAMES", "flash_attn_waits", "obstacle", "summary"]

KERNELS = ("triton", "flash_attn", "varlen", "sdpa", "flex", "eager")
"""Names of the kernels, the one that is preferred first: by what each reads and waits for, not by measurement."""

TRANSFORMERS_NAMES = {"flash_attention_2": "flash_attn", "flex_attention": "flex"}
"""transformers' names of some kernels -> ours."""

_OLDEST_FLASH = (2, 6)
"""flash-attn has windows since 2.3, and page tables in all of its kernels since 2.6."""

_WAITING_FLASH = (2, 8, 4)
"""From here on flash_attn_with_kvcache reads the lengths back to the host, so that no CUDA graph can be captured."""

_HALF = ("float16", "bfloat16")
_MAX_HEAD_DIM = 256


def obstacle(
    name: str,
    kind: str,
    capability: tuple[int, int] | None,
    dtype: str | None = None,
    head_dim: int = 8,
) -> str | None:
    """The reason why a kernel cannot run on a device of this kind, and the remedy; None if it can run.

    capability: a CUDA GPU's compute capability. dtype, head_dim: the program's, where known.
    """
    if name not in _NEEDS:
        return None
    if kind != "cuda":
        return f"it needs a CUDA GPU, and this is {kind}"
    if capability is not None and capability < (8, 0):
        return f"it needs compute capability 8.0 (Ampere), this GPU has {'.'.join(map(str, capability))}"
    if dtype not in (None, *_HALF):
        return f"it computes in {' or '.join(_HALF)}, not in {dtype}"
    if head_dim % 8 or head_dim > _MAX_HEAD_DIM:
        return f"head_dim must be a multiple of 8 up to {_MAX_HEAD_DIM}, and is {head_dim}"
    return _NEEDS[name]()


def summary(kind: str, capability: tuple[int, int] | None) -> str:
    """Usable kernels and why others are not, for people: `sdpa, flex, eager; not varlen: it needs ...`"""
    reasons = {name: obstacle(name, kind, capability) for name in KERNELS}
    usable = ", ".join(name for name, reason in reasons.items() if reason is None)
    return "; ".join([usable, *(f"not {name}: {reason}" for name, reason in reasons.items() if reason)])


def _flash_attn() -> str | None:
    install = "pip install --no-build-isolation 'flash-attn>=2.6'"
    try:
        found = version("flash-attn")
    except PackageNotFoundError:
        return f"flash-attn is not installed: {install}"
    if _numbers(found) < _OLDEST_FLASH:
        return f"flash-attn {found} is too old, its kernels take no page tables: {install}"
    return None


def flash_attn_waits() -> bool:
    """Whether the installed flash-attn's decoding kernel makes the host wait for the device."""
    return _numbers(version("flash-attn"), 3) >= _WAITING_FLASH


def _varlen() -> str | None:
    from mistral_portable_torch.attention.varlen import flash_forward

    if flash_forward() is None:
        return "this torch's flash kernels take no windows or no lengths: pip install --upgrade 'torch>=2.11'"
    return None


def _triton() -> str | None:
    return None if find_spec("triton") else "Triton is not installed: pip install triton"


_NEEDS = {"triton": _triton, "flash_attn": _flash_attn, "varlen": _varlen}
"""Needs of the kernels for CUDA GPUs beside the GPU, by name: a reason why one is not there, or None."""


def _numbers(version: str, count: int = 2) -> tuple[int, ...]:
    """The first numbers of a version: "2.8.3.post1" -> (2, 8), or (2, 8, 3); 0 where there is none."""
    found = [int(digits) for digits in re.findall(r"\d+", version.split("+")[0])]
    return tuple([*found, 0, 0][:count])

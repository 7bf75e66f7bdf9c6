"""Names of the attention kernels, and the reasons why one cannot run; found without importing torch."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["KERNELS", "TRANSFORMERS_NAMES", "obstacle", "summary"]

KERNELS = ("flash_attn", "varlen", "sdpa", "flex", "eager")
"""Names of the kernels, the best one first."""

TRANSFORMERS_NAMES = {"flash_attention_2": "flash_attn", "flex_attention": "flex"}
"""transformers' names of some kernels -> ours."""

_OLDEST_FLASH = (2, 6)
"""flash-attn has windows since 2.3, and page tables in all of its kernels since 2.6."""

_OLDEST_VARLEN = (2, 13)
"""The first torch whose varlen_attn has windows, grouped heads, and lengths in tensors."""

_HALF = ("float16", "bfloat16")
_MAX_HEAD_DIM = 256


def obstacle(
    name: str,
    kind: str,
    capability: tuple[int, int] | None,
    torch: str,
    dtype: str | None = None,
    head_dim: int = 8,
) -> str | None:
    """The reason why a kernel cannot run on a device of this kind, and the remedy; None if it can run.

    capability: a CUDA GPU's compute capability. torch: its version. dtype, head_dim: the program's, where known.
    """
    if name not in ("flash_attn", "varlen"):
        return None
    if kind != "cuda":
        return f"it needs a CUDA GPU, and this is {kind}"
    if capability is not None and capability < (8, 0):
        return f"it needs compute capability 8.0 (Ampere), this GPU has {'.'.join(map(str, capability))}"
    if dtype not in (None, *_HALF):
        return f"it computes in {' or '.join(_HALF)}, not in {dtype}"
    if head_dim % 8 or head_dim > _MAX_HEAD_DIM:
        return f"head_dim must be a multiple of 8 up to {_MAX_HEAD_DIM}, and is {head_dim}"
    return _flash_attn() if name == "flash_attn" else _varlen(torch)


def summary(kind: str, capability: tuple[int, int] | None, torch: str) -> str:
    """Usable kernels and why others are not, for people: `sdpa, flex, eager; not varlen: it needs ...`"""
    reasons = {name: obstacle(name, kind, capability, torch) for name in KERNELS}
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


def _varlen(torch: str) -> str | None:
    if _numbers(torch) < _OLDEST_VARLEN:
        return f"torch {torch} is too old, its varlen_attn has no windows: pip install --upgrade 'torch>=2.13'"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])

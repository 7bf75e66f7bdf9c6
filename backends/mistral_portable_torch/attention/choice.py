"""Choice of the attention kernel: the requested one, or the best one that can run."""

from typing import Any

import torch

from mistral_portable.errors import BackendError
from mistral_portable_torch.attempt import Attempt, why_not_compiled
from mistral_portable_torch.attention.eager import Eager
from mistral_portable_torch.attention.flash import FlashAttn
from mistral_portable_torch.attention.flex import Flex
from mistral_portable_torch.attention.kernel import Attention
from mistral_portable_torch.attention.paged import Paged
from mistral_portable_torch.attention.sdpa import SDPA
from mistral_portable_torch.attention.varlen import Varlen, flash_forward
from mistral_portable_torch.device import Device
from mistral_portable_torch.obstacles import KERNELS, TRANSFORMERS_NAMES, flash_attn_waits, obstacle

__all__ = ["choose"]


def choose(wanted: str | None, device: Device, dtype: str, head_dim: int) -> Attention:
    """The kernel of that name, or the best one for the device, the float type and the heads.

    "triton" is for decoding steps; prompts then take the best of the others. It is compiled here: where that fails, a
    warning says so, and decoding steps, too, take the kernel for prompts.

    wanted: one of KERNELS, or transformers' name of one. Raises BackendError if it is unknown or cannot run.
    """

    def reason(name: str) -> str | None:
        return obstacle(name, device.kind, device.capability, dtype, head_dim)

    usable = [name for name in KERNELS if reason(name) is None]
    prompts = next(name for name in usable if name != "triton")

    def paged() -> Attention:
        return _paged(_make(prompts, device), device, dtype, head_dim)

    if wanted is None:
        if usable[0] != "triton":
            return _make(prompts, device)
        return _DECODING.run(device.torch, paged, lambda: _make(prompts, device))
    wanted = TRANSFORMERS_NAMES.get(wanted, wanted)
    if wanted not in KERNELS:
        raise BackendError(f"attention={wanted!r}: choose one of {', '.join(KERNELS)}, or leave the option out")
    if why := reason(wanted):
        raise BackendError(f"attention={wanted!r}: {why}; choose another one, or leave the option out")
    if wanted != "triton":
        return _make(wanted, device)
    try:
        return paged()
    except Exception as error:
        if why := why_not_compiled(error):
            raise BackendError(f"attention='triton': {why}; or choose another kernel") from error
        raise


_DECODING = Attempt("Decoding steps read keys by a kernel that is made for prompts, which is slow")


def _paged(prompts: Attention, device: Device, dtype: str, head_dim: int) -> Attention:
    """Our own kernel for decoding, once it has been compiled, which takes a second if it never was; `prompts` for the
    rest."""
    from mistral_portable_torch.attention import paged_kernels

    made: dict[str, Any] = {"device": device.torch, "dtype": getattr(torch, dtype)}
    pool, one = torch.zeros(1, 256, 1, head_dim, **made), torch.ones(1, 1, dtype=torch.int32, device=device.torch)
    with device.as_current():
        for splits in (1, 2):
            paged_kernels.attend(pool[0, :1], pool, pool, one - 1, one[0], one[0] - 1, 1.0, splits)
    return Paged(paged_kernels.attend, prompts)


def _make(name: str, device: Device) -> Attention:
    match name:
        case "flash_attn":
            try:
                from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache
            except ImportError as error:
                raise BackendError(
                    f"attention='flash_attn': its import fails ({error}): rebuild it for this torch with "
                    "pip install --force-reinstall --no-build-isolation flash-attn, or choose another one"
                ) from error
            return FlashAttn(flash_attn_varlen_func, None if flash_attn_waits() else flash_attn_with_kvcache)
        case "varlen":
            forward = flash_forward()
            assert forward is not None  # else there is an obstacle
            return Varlen(forward)
        case "sdpa":
            return SDPA(cuda=device.kind == "cuda")
        case "flex":
            return Flex(compiled=device.kind == "cuda")
    return Eager()

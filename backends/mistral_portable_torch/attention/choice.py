"""Choice of the attention kernel: the requested one, or the best one that can run."""

from mistral_portable.errors import BackendError
from mistral_portable_torch.attention.eager import Eager
from mistral_portable_torch.attention.flash import FlashAttn
from mistral_portable_torch.attention.flex import Flex
from mistral_portable_torch.attention.kernel import Attention
from mistral_portable_torch.attention.sdpa import SDPA
from mistral_portable_torch.attention.varlen import Varlen, flash_forward
from mistral_portable_torch.device import Device
from mistral_portable_torch.obstacles import KERNELS, TRANSFORMERS_NAMES, flash_attn_waits, obstacle

__all__ = ["choose"]


def choose(wanted: str | None, device: Device, dtype: str, head_dim: int) -> Attention:
    """The kernel of that name, or the best one for the device, the float type and the heads.

    wanted: one of KERNELS, or transformers' name of one. Raises BackendError if it is unknown or cannot run.
    """

    def reason(name: str) -> str | None:
        return obstacle(name, device.kind, device.capability, dtype, head_dim)

    if wanted is None:
        return _make(next(name for name in KERNELS if reason(name) is None), device)
    wanted = TRANSFORMERS_NAMES.get(wanted, wanted)
    if wanted not in KERNELS:
        raise BackendError(f"attention={wanted!r}: choose one of {', '.join(KERNELS)}, or leave the option out")
    if why := reason(wanted):
        raise BackendError(f"attention={wanted!r}: {why}; choose another one, or leave the option out")
    return _make(wanted, device)


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

"""Arguments of transformers (dtype, device_map, attn_implementation, quantization_config) as options of a backend."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mistral_portable.boundary import Backend, ExecutorOptions
from mistral_portable.errors import InputError

__all__ = ["BitsAndBytesConfig", "backend_options", "dtype_name", "ggml_type"]

_HALF = ("float16", "bfloat16")


@dataclass
class BitsAndBytesConfig:
    """The type that float weights are quantized to as they are read, under bitsandbytes' documented names.

    The backend torch has these types. Other backends take ggml's of as many bits: q4_0 for 4, q8_0 for 8.
    bnb_4bit_compute_dtype: the dtype of the arithmetic, such as "torch.float16" or the dtype itself; None: the model's.
    bnb_4bit_use_double_quant and llm_int8_threshold have no effect: scales are not quantized, outliers not kept apart.

    Raises InputError if both widths are set, and for a 4-bit type other than "fp4" and "nf4".
    """

    load_in_8bit: bool = False
    load_in_4bit: bool = False
    llm_int8_threshold: float = 6.0
    bnb_4bit_compute_dtype: Any = None
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_use_double_quant: bool = False

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise InputError("load_in_4bit and load_in_8bit are both True, but only one can be used at the same time")
        if self.bnb_4bit_quant_type not in ("fp4", "nf4"):
            raise InputError(f"bnb_4bit_quant_type={self.bnb_4bit_quant_type!r}: choose 'fp4' or 'nf4'")
        dtype_name(self.bnb_4bit_compute_dtype)

    @property
    def type(self) -> str | None:
        """The backend torch's name of the type: "int8", "fp4" or "nf4"; None if nothing is quantized."""
        return "int8" if self.load_in_8bit else self.bnb_4bit_quant_type if self.load_in_4bit else None


def ggml_type(backend: Backend, quantization: Any) -> str | None:
    """The ggml type that float matrices become as the file is opened; None if nothing is quantized or the backend has
    bitsandbytes' types itself. A warning names the type."""
    config = _quantization(quantization)
    if config is None or config.type is None or "quantize" in backend.capabilities.options:
        return None
    chosen = "q8_0" if config.load_in_8bit else "q4_0"
    warnings.warn(f"backend {backend.name!r} has ggml's {chosen} for bitsandbytes' {config.type}", stacklevel=3)
    return chosen


def backend_options(
    backend: Backend,
    dtype: Any = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    quantization: Any = None,
) -> ExecutorOptions:
    """Translate transformers' arguments; where a backend has no such choice, a warning says what happens instead.

    dtype: see `dtype_name`; a quantization config's compute dtype comes first. device_map: "auto", a device, or a
    mapping of all parts to one device, such as {"": "cpu"}.
    Raises InputError for other values, and for a device where the backend has no choice of it.
    """
    known = backend.capabilities
    config = _quantization(quantization)
    if config and config.type and config.bnb_4bit_compute_dtype is not None:
        dtype = config.bnb_4bit_compute_dtype
    name = dtype_name(dtype)
    if name in _HALF and name not in known.dtypes and "float32" in known.dtypes:
        warnings.warn(f"backend {backend.name!r} computes in float32, which is finer than {name}", stacklevel=3)
        name = None
    if attn_implementation is not None and "attention" not in known.options:
        warnings.warn(f"backend {backend.name!r} has an attention of its own, not {attn_implementation}", stacklevel=3)
        attn_implementation = None
    device = _device(device_map)
    chooses = "device" in known.options
    if device == "auto" or (device == "cpu" and not chooses):
        device = None
    if device is not None and not chooses:
        raise InputError(
            f"device_map={device_map!r}: backend {backend.name!r} has no choice of it; pass backend='torch'"
        )
    return ExecutorOptions(
        dtype=name,
        device=device,
        attention=attn_implementation,
        quantize=config.type if config and "quantize" in known.options else None,
    )


def _device(device_map: Any) -> str | None:
    """The name of the device that a device_map names. Raises InputError if it names several, or none."""
    one = device_map
    if isinstance(device_map, Mapping) and len(parts := set(map(str, device_map.values()))) == 1:
        one = int(name) if (name := parts.pop()).isdecimal() else name
    elif type(device_map).__name__ == "device":
        one = str(device_map)
    if isinstance(one, bool) or not isinstance(one, str | int | None):
        raise InputError(
            f"device_map={device_map!r:.60}: pass 'auto' or one device; "
            "mistral_portable.load(tensor_parallel=...) splits a model"
        )
    return f"cuda:{one}" if isinstance(one, int) else one


def _quantization(given: Any) -> BitsAndBytesConfig | None:
    if given is None or isinstance(given, BitsAndBytesConfig):
        return given
    if isinstance(given, Mapping):
        try:
            return BitsAndBytesConfig(**{key: value for key, value in given.items() if key != "quant_method"})
        except TypeError as error:
            raise InputError(f"quantization_config: {error}") from error
    raise InputError(f"quantization_config={given!r:.40}: pass the BitsAndBytesConfig itself")


def dtype_name(dtype: Any) -> str | None:
    """The name of a float type: torch.float16, np.float16, jax.numpy.float16, "torch.float16" and "float16" all become
    "float16"; None and "auto" become None. Raises InputError for other types.
    """
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return None
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype))
    name = name.removeprefix("torch.")
    if name not in ("float32", "float64", *_HALF):
        raise InputError(f"dtype={dtype!r}: choose 'auto', 'float32', 'float16' or 'bfloat16'")
    return name

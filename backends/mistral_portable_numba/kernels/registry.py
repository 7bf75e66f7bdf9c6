"""The kernels by name, and the module of each. Imports no Numba: `kernel` does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from mistral_portable_numba.layouts import BLOCKS, KV_DTYPES

__all__ = ["MODULES", "TILED", "AnyTokens", "Factory", "kernel", "needs_tokens"]

Factory = Callable[[int], Any]
"""Called with the number of tokens that an instruction set takes at a time (`Isa.tokens`); returns the kernel."""

_KINDS = ("keys", "values")

MODULES: Mapping[str, str] = {
    **{f"linear_{name}": "linear" for name in BLOCKS},
    **{f"linear_{dtype}": "dense" for dtype in ("float32", "float16", "bfloat16")},
    **{f"embedding_{dtype}": "embedding" for dtype in ("float32", "float16", "bfloat16")},
    **{f"attention_{kv}": "attention" for kv in KV_DTYPES},
    **{f"store_{kind}_{kv}": "kv" for kind in _KINDS for kv in KV_DTYPES},
    **{f"encode_{name}": "encode" for name in BLOCKS},
    **{f"{kind}_bfloat16_{parts}": "tiled" for kind in ("split", "linear") for parts in (1, 3)},
    "quantize": "activations",
    **dict.fromkeys(("rms_norm", "rope", "silu_mul", "add", "take", "weigh", "weigh_rows"), "rows"),
    **dict.fromkeys(("route", "clear", "add_rows"), "experts"),
    "pack": "pack",
    "tape": "tape",
    **dict.fromkeys(("probe_read", "probe_dot4", "probe_fma"), "probes"),
}
"""Kernel -> the module of this package whose `KERNELS` holds its factory."""

TILED = frozenset({"linear_bfloat16_1", "linear_bfloat16_3"})
"""The kernels for AMX alone (`compiler.amx.AMX`)."""


@dataclass(frozen=True)
class AnyTokens:
    """A Factory of a kernel that does not depend on the number of tokens: it calls `factory(*arguments)`."""

    factory: Callable[..., Any]
    arguments: tuple[Any, ...] = ()

    def __call__(self, tokens: int) -> Any:
        return self.factory(*self.arguments)


def kernel(name: str, tokens: int) -> Any:
    """The kernel as a Python function, for an instruction set that takes this many tokens at a time.

    Raises KeyError for an unknown name.
    """
    return _factory(name)(tokens)


def needs_tokens(name: str) -> bool:
    """Whether the kernel differs between numbers of tokens."""
    return not isinstance(_factory(name), AnyTokens)


def _factory(name: str) -> Factory:
    module = import_module(f"mistral_portable_numba.kernels.{MODULES[name]}")
    factory: Factory = module.KERNELS[name]
    return factory

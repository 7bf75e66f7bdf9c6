"""The kernels by name, and the module of each. Imports no Numba: `kernel` does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.layouts import BLOCKS, KV_DTYPES

__all__ = ["MODULES", "AnyIsa", "Factory", "kernel", "needs_isa"]

Factory = Callable[[Isa], Any]
"""Called with an instruction set, of which only its fields from `tokens` on count; returns the kernel."""

_KINDS = ("keys", "values")

MODULES: Mapping[str, str] = {
    **{f"linear_{name}": "linear" for name in BLOCKS},
    **{f"linear_{dtype}": "dense" for dtype in ("float32", "float16", "bfloat16")},
    **{f"embedding_{dtype}": "embedding" for dtype in ("float32", "float16", "bfloat16")},
    **{f"attention_{kv}": "attention" for kv in KV_DTYPES},
    **{f"store_{kind}_{kv}": "kv" for kind in _KINDS for kv in KV_DTYPES},
    **{f"encode_{name}": "encode" for name in BLOCKS},
    **dict.fromkeys(("round_bfloat16", "tiled_bfloat16"), "tiled"),
    "quantize": "activations",
    **dict.fromkeys(("rms_norm", "rope", "silu_mul", "add", "take", "weigh", "weigh_rows"), "rows"),
    **dict.fromkeys(("route", "clear", "add_rows"), "experts"),
    "pack": "pack",
    "tape": "tape",
    **dict.fromkeys(("probe_read", "probe_dot4", "probe_fma"), "probes"),
}
"""Kernel -> the module of this package whose `KERNELS` holds its factory."""


@dataclass(frozen=True)
class AnyIsa:
    """A Factory of a kernel that does not depend on the instruction set: it calls `factory(*arguments)`."""

    factory: Callable[..., Any]
    arguments: tuple[Any, ...] = ()

    def __call__(self, isa: Isa) -> Any:
        return self.factory(*self.arguments)


def kernel(name: str, isa: Isa) -> Any:
    """The kernel as a Python function, for an instruction set. Raises KeyError for an unknown name."""
    return _factory(name)(isa)


def needs_isa(name: str) -> bool:
    """Whether the kernel differs between instruction sets, in more than the functions that it calls."""
    return not isinstance(_factory(name), AnyIsa)


def _factory(name: str) -> Factory:
    module = import_module(f"mistral_portable_numba.kernels.{MODULES[name]}")
    factory: Factory = module.KERNELS[name]
    return factory

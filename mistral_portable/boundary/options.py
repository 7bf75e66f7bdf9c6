"""ExecutorOptions: the user's choices. Capabilities: which of them a backend has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

from mistral_portable.graph import OPS

__all__ = ["BACKEND_QUANTIZE", "COMPILING", "Capabilities", "ExecutorOptions"]

BACKEND_QUANTIZE = ("nf4", "fp4", "int8")
"""Quantized types that a backend makes itself of float weights; others are ggml's (`weights.quantize_on_read`)."""

COMPILING = "compiling kernels, once per machine"
"""The `what` of `ExecutorOptions.progress` while kernels are compiled that later starts find."""


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """The user's choices for an executor. None: the backend's own choice.

    dtype: the float type of the activations ("float32", "float64", "bfloat16", "float16"), or "int8": linears over
    quantized weights take int8 inputs, everything else is float32.
    kv_cache: the type of cached keys and values ("float32", "float16", "q8_0").
    progress: called as (what, done, total), in any unit, while weights are read or kernels compiled.
    threads: CPU threads; the backend's choice should be the physical cores that this process may use.
    device: where to run, for a backend that has several ("cpu", "cuda:1").
    attention: the attention kernel ("sdpa").
    quantize: one of BACKEND_QUANTIZE, made of float matrices as they are read.
    tensor_parallel: number of processes that share a model; of several the first one makes the calls, others follow it.
    """

    dtype: str | None = None
    kv_cache: str | None = None
    progress: Callable[[str, int, int], None] | None = None
    threads: int | None = None
    device: str | None = None
    attention: str | None = None
    quantize: str | None = None
    tensor_parallel: int = 1


_COMMON = ("dtype", "kv_cache", "progress")


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """The abilities of a backend. The core refuses everything else, before a weight is read.

    dtypes: each value of `ExecutorOptions.dtype` that it takes, with the types of cached keys and values that go with
    it, its default first. options: the fields of ExecutorOptions that it takes besides dtype, kv_cache and progress,
    which all take. ops: those of the closed list that it implements. page_size: slots of a page of its cache; None: a
    page is a whole lane, which it wants in one piece (`CacheSpec`).

    Example: `Capabilities(dtypes={"float32": ("float32", "q8_0")}, options={"threads"})` refuses `kv_cache="float16"`
    and every `device`.
    """

    dtypes: Mapping[str, tuple[str, ...]]
    options: frozenset[str] = frozenset()
    ops: frozenset[str] = field(default_factory=lambda: frozenset(OPS))
    page_size: int | None = None

    def refusal(self, options: ExecutorOptions) -> str | None:
        """The reason why the options cannot be had, with the remedy; None if they can. Unset ones are always fine."""
        if options.dtype is not None and options.dtype not in self.dtypes:
            return f"dtype={options.dtype!r}: it computes in {', '.join(self.dtypes)}; choose one, or another backend"
        caches = dict.fromkeys(
            kind for dtype, kinds in self.dtypes.items() if options.dtype in (None, dtype) for kind in kinds
        )
        if options.kv_cache is not None and options.kv_cache not in caches:
            beside = f" beside dtype {options.dtype!r}" if options.dtype else ""
            return (
                f"kv_cache={options.kv_cache!r}: it keeps keys and values in {', '.join(caches)}{beside}; "
                "choose one, or leave the option out"
            )
        for own in fields(options):
            value = getattr(options, own.name)
            if value != own.default and own.name not in (*_COMMON, *self.options):
                return f"{own.name}={value!r}: it has no such choice; leave the option out, or choose another backend"
        return None

"""The descriptor of the JAX executor."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version

from mistral_portable.boundary import Availability, ExecutorOptions, Program, PureFunction, require_supported
from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.graph import OPS, Graph
from mistral_portable.weights import Tensor

__all__ = ["BACKEND", "JAXBackend"]

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_INSTALL = "pip install --upgrade 'mistral-portable[jax]'"


class JAXBackend:
    """JAX on its default device (JAX_PLATFORMS chooses). Quantized weights are unpacked to the program's dtype."""

    name = "jax"

    def probe(self) -> Availability:
        """Without importing JAX, which takes most of a second, and finding its device another."""
        try:
            found = f"JAX {version('jax')}, jaxlib {version('jaxlib')}"
        except PackageNotFoundError as error:
            return Availability(0, f"{error.name} is not installed: {_INSTALL}")
        return Availability(2, f"{found}, its default device: {', '.join(_DTYPES)}; weights are unpacked")

    def supports(self, op: str, dtype: str) -> str | None:
        if dtype not in _DTYPES:
            return f"dtype {dtype!r}: this backend computes in {', '.join(_DTYPES)}; choose one, or another backend"
        return None if op in OPS else f"unknown op {op!r}"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        options.refuse("jax", "threads", "device", "attention", "quantize", "tensor_parallel")
        dtype = self._dtype(graph, options.dtype)
        if options.kv_cache not in (None, dtype):
            raise BackendError(
                f"kv_cache={options.kv_cache!r}: backend 'jax' keeps keys and values in its own {dtype}; "
                "leave the option out, or choose another backend"
            )
        _require_device()
        from mistral_portable_jax.program import JAXProgram

        return JAXProgram(graph, weights, cache, dtype, options.progress)

    def pure(self, graph: Graph, dtype: str) -> PureFunction:
        dtype = self._dtype(graph, dtype)
        if dtype == "float64":
            raise BackendError("dtype 'float64': a pure function has JAX's own types: choose float32, or `prepare` it")
        _require_device()
        from mistral_portable_jax.pure import JAXFunction

        return JAXFunction(graph, dtype)

    def register(self, kind: type) -> None:
        from jax.tree_util import register_dataclass

        with suppress(ValueError):  # it is registered already
            register_dataclass(kind, [field.name for field in fields(kind)], [])

    def _dtype(self, graph: Graph, asked: str | None) -> str:
        """float32 by default. Raises BackendError if an op does not run in it."""
        dtype = asked or "float32"
        require_supported(self, graph, dtype)
        return dtype


def _require_device() -> None:
    try:
        import jax

        jax.devices()
    except ImportError as error:
        raise BackendError(f"JAX cannot be imported ({error}): {_INSTALL}") from error
    except (RuntimeError, AssertionError) as error:  # the latter for platforms that its build does not have
        said = str(error).partition("\n")[0] or "its build has no such platform"
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise BackendError(f"JAX_PLATFORMS={platforms!r}: no device can be used ({said}); set it to cpu") from error


BACKEND = JAXBackend()

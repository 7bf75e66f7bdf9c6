"""Descriptor of the JAX executor."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version

from mistral_portable.boundary import (
    Availability,
    Capabilities,
    ExecutorOptions,
    Program,
    PureFunction,
    check_supported,
)
from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor

__all__ = ["BACKEND", "JAXBackend"]

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_INSTALL = "pip install --upgrade 'mistral-portable[jax]'"


class JAXBackend:
    """JAX on its default device (JAX_PLATFORMS chooses). Quantized weights are unpacked to the program's dtype."""

    name = "jax"
    capabilities = Capabilities(dtypes={dtype: (dtype,) for dtype in _DTYPES}, page_size=32)

    def probe(self) -> Availability:
        """Look at the installed packages only: importing JAX takes most of a second, and finding its device another."""
        try:
            found = f"JAX {version('jax')}, jaxlib {version('jaxlib')}"
        except PackageNotFoundError as error:
            return Availability(0, f"{error.name} is not installed: {_INSTALL}")
        return Availability(2, f"{found}, its default device: {', '.join(_DTYPES)}; weights are unpacked")

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        return "float32"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        _require_device()
        from mistral_portable_jax.program import JAXProgram

        assert options.dtype is not None  # set by `boundary.prepare`
        return JAXProgram(graph, weights, cache, options.dtype, options.progress)

    def pure(self, graph: Graph, dtype: str) -> PureFunction:
        check_supported(self, graph, ExecutorOptions(dtype=dtype))
        if dtype == "float64":
            raise BackendError("dtype 'float64': a pure function has JAX's own types: choose float32, or `prepare` it")
        if graph.given:
            raise BackendError(f"a pure function takes token ids only, and the graph needs {', '.join(graph.given)}")
        _require_device()
        from mistral_portable_jax.pure import JAXFunction

        return JAXFunction(graph, dtype)

    def register(self, kind: type) -> None:
        from jax.tree_util import register_dataclass

        with suppress(ValueError):  # it is registered already
            register_dataclass(kind, [field.name for field in fields(kind)], [])


def _require_device() -> None:
    try:
        import jax

        jax.devices()
    except ImportError as error:
        raise BackendError(f"JAX cannot be imported ({error}): {_INSTALL}") from error
    except (RuntimeError, AssertionError) as error:  # AssertionError: the build lacks the requested platform
        said = str(error).partition("\n")[0] or "its build has no such platform"
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise BackendError(f"JAX_PLATFORMS={platforms!r}: no device can be used ({said}); set it to cpu") from error


BACKEND = JAXBackend()

"""Backend: a way to run graphs, what it declares, and the one place that checks what a user asks of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from mistral_portable.boundary.options import Capabilities, ExecutorOptions
from mistral_portable.boundary.program import Program
from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor

__all__ = ["Availability", "Backend", "check_options", "check_supported", "prepare"]


@dataclass(frozen=True)
class Availability:
    """The result of `probe`. score 0: unusable, and `reason` says why and what to do; else the highest score wins
    `backend="auto"`, and `reason` says what would run (device, instruction set, versions). refused: unusable because of
    what the user asked of this backend outside of all arguments, by an environment variable, say: then "auto" takes no
    other one."""

    score: int
    reason: str
    refused: bool = False


class Backend(Protocol):
    """A way to run graphs. The object is a tiny descriptor: importing it imports no framework."""

    @property
    def name(self) -> str:
        """The name for `backend=` and `--backend`."""

    @property
    def capabilities(self) -> Capabilities:
        """The dtypes, cache types, options and ops that it has on at least one machine; imports no framework."""

    def probe(self) -> Availability:
        """Whether it can run here. Imports the framework if it must; never raises for a missing one."""

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        """The dtype to compute in where the user chose none, for these weights on this machine."""

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        """Lower a verified graph. Called by `boundary.prepare`, which has checked the options against `capabilities`
        and set `dtype` and `kv_cache`.

        weights: every part of every parameter, by its checkpoint name. Raises BackendError, with the remedy, for
        what this machine lacks, and CapacityError for a model that does not fit.
        """


def prepare(
    backend: Backend, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
) -> Program:
    """Lower a verified graph onto a backend: the only caller of `Backend.prepare`.

    Raises BackendError, with the backend's name and the remedy, for an op, dtype, cache type or option that the
    backend does not declare, and what `Backend.prepare` raises.
    """
    check_supported(backend, graph, options)
    dtype = options.dtype or backend.default_dtype(weights, options)
    kv_cache = options.kv_cache or backend.capabilities.dtypes[dtype][0]
    chosen = replace(options, dtype=dtype, kv_cache=kv_cache)
    check_supported(backend, graph, chosen)
    return backend.prepare(graph, weights, cache, chosen)


def check_supported(backend: Backend, graph: Graph, options: ExecutorOptions) -> None:
    """Raise BackendError if the backend does not declare an op of the graph or one of the options."""
    if missing := sorted({node.op for node in graph.nodes} - backend.capabilities.ops):
        raise BackendError(f"backend {backend.name!r} cannot run the op {missing[0]!r}: choose another backend")
    check_options(backend, options)


def check_options(backend: Backend, options: ExecutorOptions) -> None:
    """Raise BackendError if the backend does not declare one of the options: before files are downloaded or opened."""
    if refusal := backend.capabilities.refusal(options):
        raise BackendError(f"backend {backend.name!r}, {refusal}")

"""PureFunction: a graph as a function that a framework can compile, differentiate and batch."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from mistral_portable.boundary.backend import Backend
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor

__all__ = ["FunctionalBackend", "PureFunction"]


class PureFunction(Protocol):
    """A graph as a function of weights, cache and tokens that changes none of them. Its framework can compile,
    differentiate and batch it, also as a part of a larger function. Arrays are the framework's.
    """

    def weights(self, weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """The graph's parameters by name, float32; packed weights are unpacked."""

    def init_cache(self, rows: int, length: int) -> Mapping[str, Any]:
        """Room for `length` columns of `rows` sequences."""

    def __call__(
        self, weights: Mapping[str, Any], cache: Mapping[str, Any], tokens: Any, kept: Any
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Run the graph on more columns: every output, float32, and the cache with these columns appended.

        tokens: integers [rows, columns]. kept: 0 at padding, [rows, columns] or, where wider, of all columns of the
        cache. Outputs are [rows, columns, ...], attention weights [rows, heads, columns, cached columns], and 0 at
        padding. Neither token ids nor the room in the cache are checked: under a trace they have no values yet.
        """


@runtime_checkable
class FunctionalBackend(Backend, Protocol):
    """A backend that also makes pure functions of graphs; the Flax classes need one."""

    def pure(self, graph: Graph, dtype: str) -> PureFunction:
        """Make a function of a verified graph that selects no rows, computed in `dtype`.

        Raises BackendError for an op or dtype that the backend does not declare.
        """

    def register(self, kind: type) -> None:
        """Let traced functions return dataclasses of this kind; fields: arrays, nested containers of them, or None."""

"""Which values of a graph are needed until when, and the bytes that a step so holds at once."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mistral_portable.graph.ir import Graph, Node

__all__ = ["Launch", "last_uses", "most_bytes"]


@dataclass(frozen=True)
class Launch:
    """Nodes that are computed together. nodes: one, or a few in the order of the graph. results: their values that are
    read behind them."""

    nodes: tuple[Node, ...]
    results: tuple[str, ...]

    @property
    def name(self) -> str:
        """That of its last node, whose value is a result."""
        return self.nodes[-1].name

    @property
    def inputs(self) -> tuple[str, ...]:
        """Values that its nodes read and do not make."""
        own = {node.name for node in self.nodes}
        return tuple(value for node in self.nodes for value in node.inputs if value not in own)


def last_uses(graph: Graph, launches: Sequence[Launch]) -> Mapping[str, Sequence[str]]:
    """For each launch, by name, the values that nothing reads after it: inputs and results, but no outputs of the
    graph.

    Example: b = f(a), c = g(a, b), and c is the output: {"b": [], "c": ["a", "b"]}. A result that nothing reads dies
    at its own launch.
    """
    kept = {*graph.outputs.values(), *graph.parameters}
    last: dict[str, str] = {}
    dying: dict[str, list[str]] = {}
    for launch in launches:
        dying[launch.name] = []
        last |= dict.fromkeys([*launch.results, *launch.inputs], launch.name)
    for value, name in last.items():
        if value not in kept:
            dying[name].append(value)
    return dying


def most_bytes(
    graph: Graph,
    launches: Sequence[Launch],
    size: Callable[[str], int],
    own: Callable[[Launch], int],
    late: int = 0,
) -> int:
    """The most bytes that are held at once where each value is freed after its last use.

    size: bytes of a value. own: what a launch takes besides while it runs. late: launches by which the memory of
    another one is freed later. Columns that are taken from a value are views: they keep it.

    Example: b = f(a), c = g(b), d = h(c) of 8 bytes each: 16, and with late=1 24, as a is still there beside b and c.
    """
    dying = last_uses(graph, launches)
    whole: dict[str, str] = {}  # the value that a view belongs to
    views: dict[str, set[str]] = {}
    held = {name: size(name) for name in graph.given}
    most = sum(held.values())
    ending = deque[tuple[Launch, int]]()

    def drop(value: str) -> None:
        owner = whole.get(value, value)
        users = views.get(owner, {owner})
        users.discard(value)
        if not users:
            held.pop(owner, None)
        elif value != owner:
            held.pop(value, None)

    for launch in launches:
        node = launch.nodes[-1]
        if node.op == "take_columns":
            owner = whole.get(node.inputs[0], node.inputs[0])
            whole[node.name] = owner
            views.setdefault(owner, {owner}).add(node.name)
            held[node.name] = 0
        else:
            held |= {name: size(name) for name in launch.results}
        ending.append((launch, own(launch)))
        most = max(most, sum(held.values()) + sum(bytes_ for _, bytes_ in ending))
        if len(ending) > late:
            ended, _ = ending.popleft()
            for value in dying[ended.name]:
                drop(value)
    return most

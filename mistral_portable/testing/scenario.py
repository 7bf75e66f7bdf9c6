"""Scenarios: how tokens reach a program (chunks, batches, rollbacks), and the run that gathers its outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheManager, CacheSpec, Chunk, StepPlan
from mistral_portable.executor import Program
from mistral_portable.graph import Graph, infer_shapes

__all__ = ["Feed", "Scenario", "one_shot", "run"]

Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Feed:
    """Tokens for one sequence in one step; after the step all but the first `keep` are rolled back."""

    sequence: int
    tokens: tuple[int, ...]
    keep: int


@dataclass(frozen=True)
class Scenario:
    """`steps`, each a tuple of feeds of different sequences. What is kept of a sequence is its text.

    Example: `Scenario(((Feed(0, (5, 6), 2),), (Feed(0, (7, 9), 1), Feed(1, (5,), 1))))` feeds 5 6, then 7 9 beside
    a second sequence, and takes the 9 back: the texts are (5, 6, 7) and (5,).
    """

    steps: tuple[tuple[Feed, ...], ...]

    @property
    def texts(self) -> dict[int, tuple[int, ...]]:
        """The kept tokens of each sequence."""
        texts: dict[int, tuple[int, ...]] = {}
        for step in self.steps:
            for feed in step:
                texts[feed.sequence] = texts.get(feed.sequence, ()) + feed.tokens[: feed.keep]
        return texts

    @property
    def max_chunk(self) -> int:
        """The longest feed."""
        return max(len(feed.tokens) for step in self.steps for feed in step)

    @property
    def max_context(self) -> int:
        """The greatest length that a sequence reaches, before anything is rolled back."""
        lengths: dict[int, int] = {}
        longest = 0
        for step in self.steps:
            for feed in step:
                begin = lengths.get(feed.sequence, 0)
                longest = max(longest, begin + len(feed.tokens))
                lengths[feed.sequence] = begin + feed.keep
        return longest


def one_shot(text: Sequence[int]) -> Scenario:
    """The whole text of one sequence in one step."""
    return Scenario(((Feed(0, tuple(text), len(text)),),))


def run(program: Program, graph: Graph, spec: CacheSpec, scenario: Scenario) -> dict[int, Outputs]:
    """Drive `program` through the scenario; per sequence, every graph output on the kept tokens, in order.

    Outputs with a K axis (attention weights) come back with one column per position, [tokens, heads, positions].
    """
    manager = CacheManager(spec)
    lanes = {sequence: manager.open() for sequence in scenario.texts}
    gathered: dict[int, dict[str, list[NDArray[Any]]]] = {sequence: {} for sequence in lanes}
    shapes = infer_shapes(graph)
    for step in scenario.steps:
        plan = manager.plan([Chunk(lanes[feed.sequence], feed.tokens, range(len(feed.tokens))) for feed in step])
        outputs = program.step(plan)
        for index, feed in enumerate(step):
            start = int(plan.starts[index])
            for name, value in graph.outputs.items():
                rows = outputs[name][start : start + feed.keep]
                if shapes[value][-1] == "K":
                    first = _first(graph, spec, plan, value, index)
                    rows = _by_position(rows, first, len(scenario.texts[feed.sequence]))
                gathered[feed.sequence].setdefault(name, []).append(rows)
            if feed.keep < len(feed.tokens):
                lane = lanes[feed.sequence]
                manager.rollback(lane, manager.length(lane) - len(feed.tokens) + feed.keep)
    return {
        sequence: {name: np.concatenate(parts) for name, parts in outputs.items()}
        for sequence, outputs in gathered.items()
    }


def _first(graph: Graph, spec: CacheSpec, plan: StepPlan, value: str, index: int) -> int:
    layer = next(node.attributes["layer"] for node in graph.nodes if node.name == value)
    assert isinstance(layer, int)
    return int(plan.groups[spec.group_of(layer)].first[index])


def _by_position(rows: NDArray[Any], first: int, positions: int) -> NDArray[Any]:
    """[n, heads, K] with columns from position `first` on -> [n, heads, positions]."""
    placed = np.zeros((*rows.shape[:2], positions), rows.dtype)
    width = min(rows.shape[2], positions - first)  # columns of tokens that are rolled back are hidden: all zero
    placed[:, :, first : first + width] = rows[:, :, :width]
    return placed

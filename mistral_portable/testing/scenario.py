"""Scenarios: how tokens reach a program (chunks, batches, rollbacks, forks, swaps); the run gathers its outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import SavedLane, load_lane, save_lane
from mistral_portable.boundary.program import Inputs, Program
from mistral_portable.cache import CacheManager, CacheSpec, Chunk, StepPlan
from mistral_portable.graph import Graph, Shape, infer_shapes
from mistral_portable.graph.adapters import ADAPTERS
from mistral_portable.graph.passes import EMBEDDED_ROWS, INPUTS_EMBEDS

__all__ = ["Feed", "Outputs", "Scenario", "Stuck", "WrongOutput", "given_inputs", "one_shot", "run"]

Outputs = dict[str, NDArray[Any]]


class WrongOutput(Exception):
    """A program breaks its contract: an output is not the array that the graph and the plan describe, say."""


class Stuck(WrongOutput):
    """A call of the program does not end."""


@dataclass(frozen=True)
class Feed:
    """Tokens for one sequence in one step; after the step all but the first `keep` are taken back.

    `rows`: the kept tokens whose rows of outputs with an R axis are requested; None: all of them.
    """

    sequence: int
    tokens: tuple[int, ...]
    keep: int
    rows: tuple[int, ...] | None = None

    @property
    def requested(self) -> tuple[int, ...]:
        """The indices `rows`; all kept tokens where it is None."""
        return tuple(range(self.keep)) if self.rows is None else self.rows


@dataclass(frozen=True)
class Scenario:
    """`steps`, each a tuple of feeds of different sequences. What is kept of a sequence is its text.

    Example: `Scenario(((Feed(0, (5, 6), 2),), (Feed(0, (7, 9), 1), Feed(1, (5,), 1))))` feeds 5 6, then 7 9 beside
    a second sequence, and takes the 9 back: the texts are (5, 6, 7) and (5,).

    swap: after each step its sequences are saved and leave their lanes to others; each goes on in a fork of a lane that
    it is loaded into. fork: after each step its sequences go on in forks of their lanes, which end where the kept
    tokens do. In both cases the lane that was forked takes other tokens in the sequence's next step, then is closed: so
    both write into the page that they share. Without `fork`, tokens are taken back by a rollback.
    embeds: where the graph accepts embeddings, even token ids have rows that are not the embedding table's.
    """

    steps: tuple[tuple[Feed, ...], ...]
    swap: bool = False
    fork: bool = False
    embeds: bool = False

    @property
    def texts(self) -> dict[int, tuple[int, ...]]:
        """The kept tokens of each sequence."""
        texts: dict[int, tuple[int, ...]] = {}
        for step in self.steps:
            for feed in step:
                texts[feed.sequence] = texts.get(feed.sequence, ()) + feed.tokens[: feed.keep]
        return texts

    def only(self, sequence: int) -> "Scenario":
        """The same feeds of one of its sequences, in the same order; the others are left out."""
        feeds = (feed for step in self.steps for feed in step if feed.sequence == sequence)
        return replace(self, steps=tuple((feed,) for feed in feeds))

    def requested(self, sequence: int) -> list[int]:
        """The positions of the sequence whose rows are requested, in order."""
        positions: list[int] = []
        begin = 0
        for feed in (feed for step in self.steps for feed in step if feed.sequence == sequence):
            positions += [begin + row for row in feed.requested]
            begin += feed.keep
        return positions

    @property
    def max_lanes(self) -> int:
        """One for each sequence, twice as many with `fork`; with `swap`, twice those of the widest step."""
        if self.swap:
            return 2 * max(len(step) for step in self.steps)
        return len(self.texts) * (2 if self.fork else 1)

    @property
    def max_chunk(self) -> int:
        """The longest feed."""
        return max(len(feed.tokens) for step in self.steps for feed in step)

    @property
    def max_context(self) -> int:
        """The greatest length that a sequence reaches, before anything is taken back, or a lane that was forked."""
        lengths: dict[int, int] = {}
        surplus: dict[int, int] = {}  # tokens that the lane that was forked has beyond the sequence's
        longest = 0
        for step in self.steps:
            for feed in step:
                begin = lengths.get(feed.sequence, 0)
                longest = max(longest, begin + surplus.get(feed.sequence, 0) + len(feed.tokens))
                lengths[feed.sequence] = begin + feed.keep
                surplus[feed.sequence] = len(feed.tokens) - feed.keep if self.fork else 0
        return longest


def one_shot(text: Sequence[int], *, sequences: int = 1, embeds: bool = False) -> Scenario:
    """The whole text in one step; `sequences` of them, side by side."""
    return Scenario((tuple(Feed(s, tuple(text), len(text)) for s in range(sequences)),), embeds=embeds)


def run(
    program: Program, graph: Graph, spec: CacheSpec, scenario: Scenario, manager: CacheManager | None = None
) -> dict[int, Outputs]:
    """Drive `program` through the scenario; per sequence, every graph output on the kept tokens, in order.

    Outputs with an R axis have the requested rows only. Outputs with a K axis (attention weights) come back with one
    column per position, [tokens, heads, positions]. Raises WrongOutput for a wrong name, shape or dtype.
    """
    manager = manager or CacheManager(spec)
    lanes: dict[int, int] = {}
    branches: dict[int, int] = {}  # lanes that were forked
    parked: dict[int, SavedLane] = {}
    gathered: dict[int, dict[str, list[NDArray[Any]]]] = {sequence: {} for sequence in scenario.texts}
    shapes = infer_shapes(graph)
    for step in scenario.steps:
        for feed in step:
            if feed.sequence in parked:
                branches[feed.sequence] = load_lane(program, manager, parked.pop(feed.sequence))
                lanes[feed.sequence] = manager.fork(branches[feed.sequence])
            elif feed.sequence not in lanes:
                lanes[feed.sequence] = manager.open()
        chunks = [Chunk(lanes[feed.sequence], feed.tokens, feed.requested) for feed in step]
        for feed in step:
            if feed.sequence in branches:
                chunks.append(Chunk(branches[feed.sequence], [int(token == 0) for token in feed.tokens]))
        plan = manager.plan(chunks)
        outputs = program.step(plan, given_inputs(plan, graph, scenario.embeds))
        dtype = "float64" if program.precision.dtype == "float64" else "float32"
        _require_described(outputs, shapes, graph, spec, plan, dtype)
        for index, feed in enumerate(step):
            text = scenario.texts[feed.sequence]
            for name, rows in _rows_of(index, feed, outputs, shapes, graph, spec, plan, len(text)).items():
                gathered[feed.sequence].setdefault(name, []).append(rows)
        for array in outputs.values():
            array.fill(np.nan)  # they are the caller's own: no later step may read them, or leave them as they are
        for feed in step:
            lane = lanes[feed.sequence]
            length = manager.length(lane) - len(feed.tokens) + feed.keep
            if feed.sequence in branches:
                manager.close(branches.pop(feed.sequence))
            if scenario.fork:
                branches[feed.sequence], lanes[feed.sequence] = lane, manager.fork(lane, length)
            elif feed.keep < len(feed.tokens):
                manager.rollback(lane, length)
            if scenario.swap:
                parked[feed.sequence] = save_lane(program, manager, lane)
                manager.close(lanes.pop(feed.sequence))
    return {
        sequence: {name: np.concatenate(parts) for name, parts in outputs.items()}
        for sequence, outputs in gathered.items()
    }


def given_inputs(plan: StepPlan, graph: Graph, embeds: bool) -> Inputs:
    """Inputs that passes have added. `accept_embeddings`: with `embeds`, rows in place of those of even token ids; else
    no rows. `add_adapters`: by token id no adapter, one of them, or all with weights between -1 and 1."""
    given: dict[str, NDArray[Any]] = {}
    if INPUTS_EMBEDS in graph.inputs:
        places = np.flatnonzero(plan.tokens % 2 == 0) if embeds else np.zeros(0, np.intp)
        width = int(graph.inputs[INPUTS_EMBEDS][1])
        rows = np.cos(np.outer(plan.tokens[places] + 1, np.arange(1, width + 1)))
        given |= {INPUTS_EMBEDS: rows.astype(np.float32), EMBEDDED_ROWS: places.astype(np.int32)}
    if ADAPTERS in graph.inputs:
        count = int(graph.inputs[ADAPTERS][1])
        kinds = np.concatenate([np.zeros((1, count)), np.eye(count), np.cos(np.arange(count))[None]])
        given[ADAPTERS] = kinds[plan.tokens % len(kinds)].astype(np.float32)
    return given


def _require_described(
    outputs: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, Shape],
    graph: Graph,
    spec: CacheSpec,
    plan: StepPlan,
    dtype: str,
) -> None:
    if set(outputs) != set(graph.outputs):
        raise WrongOutput(f"outputs {sorted(outputs)} instead of {sorted(graph.outputs)}")
    for name, value in graph.outputs.items():
        sizes = {"T": len(plan.tokens), "R": len(plan.logit_rows)}
        if shapes[value][-1] == "K":
            sizes["K"] = int(np.max(plan.positions[plan.query_starts[1:] - 1] + 1 - _first(graph, spec, plan, value)))
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in shapes[value])
        array = outputs[name]
        if array.shape != shape or array.dtype != dtype or not array.flags.writeable:
            kind = "" if array.flags.writeable else "read-only "
            raise WrongOutput(f"{name} is {kind}{array.dtype} {array.shape} instead of {dtype} {shape}")


def _rows_of(
    index: int,
    feed: Feed,
    outputs: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, Shape],
    graph: Graph,
    spec: CacheSpec,
    plan: StepPlan,
    positions: int,
) -> Outputs:
    """Copies of the rows of the plan's sequence `index`."""
    start, stop = plan.query_starts[index : index + 2]
    rows: Outputs = {}
    for name, value in graph.outputs.items():
        if shapes[value][0] == "R":
            rows[name] = outputs[name][(start <= plan.logit_rows) & (plan.logit_rows < stop)]
        else:
            rows[name] = outputs[name][start : start + feed.keep].copy()
        if shapes[value][-1] == "K":
            rows[name] = _by_position(rows[name], int(_first(graph, spec, plan, value)[index]), positions)
    return rows


def _first(graph: Graph, spec: CacheSpec, plan: StepPlan, value: str) -> NDArray[np.int32]:
    """The oldest position that each sequence reads in the layer of the node `value`."""
    layer = next(node.attributes["layer"] for node in graph.nodes if node.name == value)
    assert isinstance(layer, int)
    return plan.groups[spec.group_of(layer)].first


def _by_position(rows: NDArray[Any], first: int, positions: int) -> NDArray[Any]:
    """[n, heads, K] with columns from position `first` on -> [n, heads, positions]."""
    placed = np.zeros((*rows.shape[:2], positions), rows.dtype)
    width = min(rows.shape[2], positions - first)  # columns of tokens that are rolled back are hidden: all zero
    placed[:, :, first : first + width] = rows[:, :, :width]
    return placed

"""Decoder: a graph with a head on an executor, run on padded batches."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import Backend, ExecutorOptions, Program, check_tensors, prepare
from mistral_portable.boundary.program import Inputs
from mistral_portable.boundary.shared import gigabytes
from mistral_portable.cache import CacheManager, CacheSpec, Chunk, StepPlan
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BusyError, CapacityError, ClosedError, InputError, MistralPortableError
from mistral_portable.forks import make_locks
from mistral_portable.graph import build, verify
from mistral_portable.graph.passes import (
    EMBEDDED_ROWS,
    INPUTS_EMBEDS,
    accept_embeddings,
    expose_attention_weights,
    expose_hidden_states,
    select_rows,
)
from mistral_portable.transformers.batch import Batch
from mistral_portable.transformers.cache import Cache
from mistral_portable.weights import Tensor

__all__ = ["ATTENTIONS", "HIDDEN_STATES", "Decoder", "Outputs"]

HIDDEN_STATES, ATTENTIONS = "hidden_states", "attentions"
"""Outputs that a program may expose besides its result."""

_CHUNK = 512
_LANES = 256  # rows of all caches that callers hold; as many lanes besides are for rows that take turns

Outputs = dict[str, NDArray[np.float32]]
"""A graph's outputs by name, each [B, T, ...]."""


class Decoder:
    """One or more programs of a model, one for each set of exposed outputs, which share a cache manager.

    Calls from several threads take turns.
    """

    def __init__(
        self,
        config: MistralConfig,
        tensors: Mapping[str, Tensor],
        backend: Backend,
        options: ExecutorOptions,
        *,
        head: str,
        num_labels: int,
        source: str,
    ) -> None:
        """Build the graph with its head, check the tensors against it and prepare the first program.

        source: where the tensors are from, for messages. Raises CheckpointError for tensors that do not fit the
        config, and the errors of `boundary.prepare`.
        """
        self.config = config
        self._graph = verify(accept_embeddings(build(config, head=head, num_labels=num_labels)))
        self._selects_rows = head == "causal_lm"
        check_tensors(self._graph, tensors, source)
        self._tensors, self._backend, self._options = tensors, backend, options
        limit = config.max_position_embeddings
        self._spec = CacheSpec.from_config(
            config,
            max_context=limit,
            page_size=backend.capabilities.page_size,
            max_chunk=_CHUNK,
            max_lanes=2 * _LANES,
        )
        self.manager = CacheManager(self._spec)
        self._programs: dict[frozenset[str], Program] = {}
        make_locks(self, Decoder._make_locks)
        self._closed = False
        self._program(frozenset())

    def _make_locks(self) -> None:
        self.turn = threading.RLock()
        """Held by a caller from the opening of temporary lanes to their closing."""

    def run(
        self, batch: Batch, cache: Cache | None, exposed: frozenset[str], rows: Sequence[int] | None = None
    ) -> Outputs:
        """Run the batch and append its tokens to the cache: every output of the graph as [B, T, ...], 0 at padding.

        cache: None for a temporary one; the rows of the batch may then run in turns.
        exposed: HIDDEN_STATES, ATTENTIONS, both or none. Attention weights are [B, heads, T, keys], with a key for
        each column of the cache. rows: the columns whose logits a causal LM returns, in this order; None: all.

        If it fails, the cache is as it was before, or closed if a window has lost keys that the rows need.
        Raises InputError if there is no token or a row would exceed max_position_embeddings; ClosedError if the
        model or the cache is closed; CapacityError if a step or its outputs do not fit into memory.
        """
        if not any(batch.tokens):
            raise InputError("every row is padding: give at least one token")
        with self.turn:
            if cache is None:
                return self._run_in_turns(batch, exposed, rows)
            cache.require_open()
            longest = max(len(old) + len(new) for old, new in zip(cache.columns, batch.columns, strict=True))
            if longest > self._spec.max_context:
                raise InputError(f"{longest} tokens exceed max_position_embeddings={self._spec.max_context}")
            program = self._program_with(cache, exposed)
            before = [self.manager.length(lane) for lane in cache.lanes]
            wanted = np.arange(batch.shape[1]) if rows is None else np.unique(np.asarray(rows, np.intp))
            out: Outputs = {}
            try:
                for piece in self._pieces(batch, cache, wanted):
                    plan = self.manager.plan(piece.chunks)
                    for name, array in self._step(program, plan, piece.inputs).items():
                        self._place(out, name, array, piece, plan, batch, wanted)
            except BaseException:
                self._undo(cache, before)
                raise
            cache.extend(batch.columns, batch.shape[1])
            if "logits" in out and rows is not None and not np.array_equal(rows, wanted):
                out["logits"] = out["logits"][:, np.searchsorted(wanted, rows)]
            return out

    def new_cache(self, rows: int) -> Cache:
        """Make an empty cache for a caller to keep. Raises BusyError if too few lanes are left."""
        with self.turn:
            self._require_lanes(rows)
            return Cache(self.manager, rows, self._copy)

    @contextmanager
    def temporary_cache(self, rows: int) -> Iterator[Cache]:
        """An empty cache, closed at the end of the `with` block. rows: at most as many as `turns` yields; the caller
        holds `turn`."""
        cache = Cache(self.manager, rows, self._copy)
        try:
            yield cache
        finally:
            cache.close()

    def turns(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        """Split rows into groups that fit the lanes of temporary caches."""
        yield from (rows[start : start + _LANES] for start in range(0, len(rows), _LANES))

    @property
    def program(self) -> Program:
        """The program that exposes nothing besides its result. Raises ClosedError if the model is closed."""
        return self._program(frozenset())

    def close(self) -> None:
        """Release the threads and memory of all programs; later calls raise ClosedError."""
        with self.turn:
            self._closed = True
            for program in self._programs.values():
                program.close()
            self._programs.clear()

    def _run_in_turns(self, batch: Batch, exposed: frozenset[str], columns: Sequence[int] | None) -> Outputs:
        out: Outputs = {}
        for rows in self.turns([row for row, tokens in enumerate(batch.tokens) if tokens]):
            with self.temporary_cache(len(rows)) as cache:
                found = self.run(batch.take(rows), cache, exposed, columns)
            if len(rows) == batch.shape[0]:
                return found
            for name, array in found.items():
                if name not in out:
                    out[name] = _zeros(name, batch.shape[0], *array.shape[1:])
                out[name][rows] = array
        return out

    def _program(self, exposed: frozenset[str]) -> Program:
        """The program that exposes these outputs; the first request prepares it and reads the weights again."""
        if self._closed:
            raise ClosedError("the model is closed: load it again")
        if exposed not in self._programs:
            graph = self._graph
            if HIDDEN_STATES in exposed:
                graph = expose_hidden_states(graph)
            if ATTENTIONS in exposed:
                graph = expose_attention_weights(graph)
            if self._selects_rows:
                graph = select_rows(graph, "logits")
            self._programs[exposed] = prepare(self._backend, verify(graph), self._tensors, self._spec, self._options)
        return self._programs[exposed]

    def _program_with(self, cache: Cache, exposed: frozenset[str]) -> Program:
        """The program, with the cache's keys and values; they are moved if another program of the model holds them."""
        program = self._program(exposed)
        if cache.program != exposed and cache.get_seq_length():
            for lane in cache.lanes:
                for group, pages in enumerate(self.manager.pages(lane)):
                    program.write_pages(group, pages, self._programs[cache.program].read_pages(group, pages))
        cache.program = exposed
        return program

    def _step(self, program: Program, plan: StepPlan, inputs: Inputs) -> Mapping[str, NDArray[np.float32]]:
        """Run a step; undo its plan if it fails."""
        try:
            return program.step(plan, inputs)
        except BaseException:
            self.manager.undo(plan)
            raise

    def _require_lanes(self, rows: int) -> None:
        if len(self.manager.lanes) + rows > _LANES:
            remedy = "pass use_cache=False, or let go of other caches"
            raise BusyError(f"{rows} rows more: caches have at most {_LANES} in all: {remedy}")

    def _copy(self, cache: Cache) -> Cache:
        """A cache with the same content in lanes of its own, which share pages with the cache's until one writes."""
        with self.turn:
            cache.require_open()
            self._require_lanes(len(cache))
            copy = Cache(self.manager, len(cache), self._copy, sources=cache.lanes)
            copy.program = cache.program
            copy.extend(cache.columns, cache.get_seq_length())
            return copy

    def _undo(self, cache: Cache, before: Sequence[int]) -> None:
        """Roll every lane back to its length before the call. If one cannot go back, because another thread has closed
        it or its window has moved on, close the cache."""
        whole = True
        for lane, length in zip(cache.lanes, before, strict=True):
            try:
                self.manager.rollback(lane, length)
            except MistralPortableError:
                whole = False
        if not whole:
            cache.close()

    def _pieces(self, batch: Batch, cache: Cache, wanted: NDArray[np.intp]) -> Iterator["_Piece"]:
        """Split the batch into steps of at most max_chunk tokens, each with all rows that have some left."""
        requested = np.zeros(batch.shape[1], np.bool_)
        requested[wanted] = True
        past = cache.get_seq_length()
        keys = [np.append(old, past + new) for old, new in zip(cache.columns, batch.columns, strict=True)]
        done = [0] * batch.shape[0]
        while active := [row for row, tokens in enumerate(batch.tokens) if done[row] < len(tokens)]:
            size = max(1, self._spec.max_chunk // len(active))
            spans = [slice(done[row], done[row] + size) for row in active]
            columns = [batch.columns[row][span] for row, span in zip(active, spans, strict=True)]
            chunks = [
                Chunk(cache.lanes[row], batch.tokens[row][span], np.flatnonzero(requested[some]).tolist())
                for row, span, some in zip(active, spans, columns, strict=True)
            ]
            embeds = np.zeros((0, self.config.hidden_size), np.float32)
            if batch.embeds is not None:
                embeds = np.concatenate([batch.embeds[row, some] for row, some in zip(active, columns, strict=True)])
            inputs = {INPUTS_EMBEDS: embeds, EMBEDDED_ROWS: np.arange(len(embeds), dtype=np.int32)}
            yield _Piece(chunks, inputs, active, columns, [keys[row] for row in active], past + batch.shape[1])
            for row, some in zip(active, columns, strict=True):
                done[row] += len(some)

    def _place(
        self,
        out: Outputs,
        name: str,
        array: NDArray[np.float32],
        piece: "_Piece",
        plan: StepPlan,
        batch: Batch,
        wanted: NDArray[np.intp],
    ) -> None:
        """Copy a step's output [T or R, ...] to the rows and columns of its tokens in the batch; logits to the places
        of their columns in `wanted`."""
        if name.startswith(f"{ATTENTIONS}."):
            if name not in out:
                out[name] = _zeros(name, batch.shape[0], array.shape[1], batch.shape[1], piece.width)
            first = plan.groups[self._spec.group_of(int(name.removeprefix(f"{ATTENTIONS}.")))].first
            sequences = zip(piece.rows, piece.columns, piece.keys, first, plan.ends, plan.spans, strict=True)
            for row, columns, keys, begin, end, tokens in sequences:
                seen = keys[begin:end]
                # [tokens, keys, heads]: NumPy puts indexed axes first
                target = out[name][row].transpose(1, 2, 0)
                target[np.ix_(columns, seen)] = array[tokens, :, : len(seen)].swapaxes(1, 2)
            return
        rows = np.repeat(piece.rows, np.diff(plan.query_starts))
        columns = np.concatenate(piece.columns)
        width = batch.shape[1]
        if name == "logits" and self._selects_rows:
            rows, columns, width = rows[plan.logit_rows], np.searchsorted(wanted, columns[plan.logit_rows]), len(wanted)
        if name not in out:
            out[name] = _zeros(name, batch.shape[0], width, *array.shape[1:])
        out[name][rows, columns] = array


@dataclass(frozen=True)
class _Piece:
    """One step of a batch.

    chunks: a chunk for each row of the batch that takes part. inputs: the step's inputs beyond its plan. rows: for
    each chunk its row of the batch. columns: for each chunk its tokens' columns in the batch. keys: for each chunk the
    cache columns of all tokens of its row, in order of position. width: columns of the cache after the whole batch.
    """

    chunks: Sequence[Chunk]
    inputs: Inputs
    rows: Sequence[int]
    columns: Sequence[NDArray[np.intp]]
    keys: Sequence[NDArray[np.intp]]
    width: int


def _zeros(name: str, *shape: int) -> NDArray[np.float32]:
    """An output to be filled. Raises CapacityError if there is no memory for it."""
    try:
        return np.zeros(shape, np.float32)
    except MemoryError as error:
        size = gigabytes(4 * int(np.prod(shape, dtype=object)))
        raise CapacityError(
            f"{name} {list(shape)} takes {size}: no memory for it; pass fewer rows or tokens"
        ) from error

"""Decoder: a graph with a head on an executor, run on padded batches."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import Backend, ExecutorOptions, Program, prepare
from mistral_portable.boundary.binding import check_tensors
from mistral_portable.cache import CacheManager, CacheSpec, Chunk, StepPlan
from mistral_portable.config import MistralConfig
from mistral_portable.errors import CacheError, InputError
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

__all__ = ["ATTENTIONS", "HIDDEN_STATES", "Decoder"]

HIDDEN_STATES, ATTENTIONS = "hidden_states", "attentions"
"""What a step may show besides its result."""

_CHUNK = 512
_LANES = 256  # rows of caches that are held, and as many besides that take turns

Outputs = dict[str, NDArray[np.float32]]


class Decoder:
    """Calls from several threads take turns."""

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
        self.config = config
        self._graph = verify(build(config, head=head, num_labels=num_labels))
        self._selects_rows = head == "causal_lm"
        check_tensors(self._graph, tensors, source)
        self._tensors, self._backend, self._options = tensors, backend, options
        limit = config.max_position_embeddings
        self._spec = CacheSpec.from_config(config, max_context=limit, max_chunk=_CHUNK, max_lanes=2 * _LANES)
        self.manager = CacheManager(self._spec)
        self._programs: dict[frozenset[str], Program] = {}
        self.turn = threading.RLock()
        """Held while lanes are opened and used that are closed before it is released."""
        self._closed = False
        self._program(frozenset())

    def run(
        self, batch: Batch, cache: Cache | None, shown: frozenset[str], rows: Sequence[int] | None = None
    ) -> Outputs:
        """Every output of the graph as [B, T, ...], 0 where there is padding; the tokens are then in the cache.

        cache: None for one that nobody keeps, of which rows may then take turns.
        shown: of HIDDEN_STATES and ATTENTIONS. Attention weights are [B, heads, T, keys], with a key for each column of
        the cache. rows: of a causal LM, the columns whose logits are wanted, and their order; all if None.

        If it fails, the cache is as it was, or closed where a window has moved on too far. Raises InputError for more
        tokens than the model takes, and if there are none at all.
        """
        if not any(batch.tokens):
            raise InputError("every row is padding: give at least one token")
        with self.turn:
            if cache is None:
                return self._in_turns(batch, shown, rows)
            cache.require_open()
            longest = max(len(old) + len(new) for old, new in zip(cache.columns, batch.columns, strict=True))
            if longest > self._spec.max_context:
                raise InputError(f"{longest} tokens exceed max_position_embeddings={self._spec.max_context}")
            program = self._program_with(cache, shown)
            before = [self.manager.length(lane) for lane in cache.lanes]
            wanted = np.arange(batch.shape[1]) if rows is None else np.unique(np.asarray(rows, np.intp))
            out: Outputs = {}
            try:
                for piece in self._pieces(batch, cache, wanted):
                    plan = self.manager.plan(piece.chunks)
                    for name, array in program.step(plan, self._inputs(piece)).items():
                        self._place(out, name, array, piece, plan, batch, wanted)
            except BaseException:
                self._undo(cache, before)
                raise
            cache.extend(batch.columns, batch.shape[1])
            if "logits" in out and rows is not None and not np.array_equal(rows, wanted):
                out["logits"] = out["logits"][:, np.searchsorted(wanted, rows)]
            return out

    def new_cache(self, rows: int) -> Cache:
        """An empty one, to be held. Raises InputError if there are not so many lanes left."""
        with self.turn:
            self._require_lanes(rows)
            return Cache(self.manager, rows, self._fork)

    @contextmanager
    def brief_cache(self, rows: int) -> Iterator[Cache]:
        """An empty one for at most so many rows as `turns` gives; the caller has the turn."""
        cache = Cache(self.manager, rows, self._fork)
        try:
            yield cache
        finally:
            cache.close()

    def turns(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        """These rows, as many at a time as have lanes."""
        yield from (rows[start : start + _LANES] for start in range(0, len(rows), _LANES))

    @property
    def program(self) -> Program:
        """The one that shows nothing besides."""
        return self._program(frozenset())

    def close(self) -> None:
        with self.turn:
            self._closed = True
            for program in self._programs.values():
                program.close()
            self._programs.clear()

    def _in_turns(self, batch: Batch, shown: frozenset[str], columns: Sequence[int] | None) -> Outputs:
        out: Outputs = {}
        for rows in self.turns([row for row, tokens in enumerate(batch.tokens) if tokens]):
            with self.brief_cache(len(rows)) as cache:
                found = self.run(batch.take(rows), cache, shown, columns)
            if len(rows) == batch.shape[0]:
                return found
            for name, array in found.items():
                out.setdefault(name, np.zeros((batch.shape[0], *array.shape[1:]), np.float32))[rows] = array
        return out

    def _program(self, shown: frozenset[str]) -> Program:
        """The one that shows these besides: prepared, and its weights read again, when it is first asked for."""
        if self._closed:
            raise InputError("the model is closed: load it again")
        if shown not in self._programs:
            graph = accept_embeddings(self._graph)
            if HIDDEN_STATES in shown:
                graph = expose_hidden_states(graph)
            if ATTENTIONS in shown:
                graph = expose_attention_weights(graph)
            if self._selects_rows:
                graph = select_rows(graph, "logits")
            self._programs[shown] = prepare(self._backend, verify(graph), self._tensors, self._spec, self._options)
        return self._programs[shown]

    def _program_with(self, cache: Cache, shown: frozenset[str]) -> Program:
        """With the rows' keys and values, which the last program may have: all have lanes of the same layout."""
        program = self._program(shown)
        if cache.program != shown and cache.get_seq_length():
            for lane in cache.lanes:
                program.load_lane(lane, self._programs[cache.program].save_lane(lane))
        cache.program = shown
        return program

    def _require_lanes(self, rows: int) -> None:
        if len(self.manager.lanes) + rows > _LANES:
            remedy = "pass use_cache=False, or let go of other caches"
            raise InputError(f"{rows} rows more: caches have at most {_LANES} in all: {remedy}")

    def _fork(self, shown: frozenset[str], source: int) -> int:
        """A lane with what is in another one."""
        with self.turn:
            self._require_lanes(1)
            program, lane = self._program(shown), self.manager.fork(source)
            try:
                program.copy_lane(source, lane)
            except BaseException:
                self.manager.close(lane)
                raise
            return lane

    def _undo(self, cache: Cache, before: Sequence[int]) -> None:
        """Take the lanes back to where they were; close the cache if a window's ring has overwritten what was there."""
        try:
            for lane, length in zip(cache.lanes, before, strict=True):
                self.manager.rollback(lane, length)
        except CacheError:
            cache.close()

    def _pieces(self, batch: Batch, cache: Cache, wanted: NDArray[np.intp]) -> Iterator["_Piece"]:
        """Steps of at most max_chunk tokens in all, of all rows that have some left."""
        asked = np.zeros(batch.shape[1], np.bool_)
        asked[wanted] = True
        past = cache.get_seq_length()
        keys = [np.append(old, past + new) for old, new in zip(cache.columns, batch.columns, strict=True)]
        done = [0] * batch.shape[0]
        while active := [row for row, tokens in enumerate(batch.tokens) if done[row] < len(tokens)]:
            size = max(1, self._spec.max_chunk // len(active))
            spans = [slice(done[row], done[row] + size) for row in active]
            columns = [batch.columns[row][span] for row, span in zip(active, spans, strict=True)]
            chunks = [
                Chunk(cache.lanes[row], batch.tokens[row][span], np.flatnonzero(asked[some]).tolist())
                for row, span, some in zip(active, spans, columns, strict=True)
            ]
            embeds = None
            if batch.embeds is not None:
                embeds = np.concatenate([batch.embeds[row, some] for row, some in zip(active, columns, strict=True)])
            yield _Piece(chunks, active, columns, [keys[row] for row in active], past + batch.shape[1], embeds)
            for row, some in zip(active, columns, strict=True):
                done[row] += len(some)

    def _inputs(self, piece: "_Piece") -> dict[str, NDArray[Any]]:
        """Rows in place of all tokens' embeddings, or none."""
        embeds = np.zeros((0, self.config.hidden_size), np.float32) if piece.embeds is None else piece.embeds
        return {INPUTS_EMBEDS: embeds, EMBEDDED_ROWS: np.arange(len(embeds), dtype=np.int32)}

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
        """Put the rows of a step's output where their tokens stand in the batch; logits among the wanted columns."""
        if name.startswith(f"{ATTENTIONS}."):
            target = out.setdefault(
                name, np.zeros((batch.shape[0], array.shape[1], batch.shape[1], piece.width), np.float32)
            )
            first = plan.groups[self._spec.group_of(int(name.removeprefix(f"{ATTENTIONS}.")))].first
            for s, (row, columns, keys) in enumerate(zip(piece.rows, piece.columns, piece.keys, strict=True)):
                start, stop = int(plan.query_starts[s]), int(plan.query_starts[s + 1])
                seen = keys[int(first[s]) : int(plan.positions[stop - 1]) + 1]
                # [tokens, keys, heads]: what is indexed comes first
                target[row].transpose(1, 2, 0)[np.ix_(columns, seen)] = array[start:stop, :, : len(seen)].swapaxes(1, 2)
            return
        rows = np.repeat(piece.rows, np.diff(plan.query_starts))
        columns = np.concatenate(piece.columns)
        width = batch.shape[1]
        if name == "logits" and self._selects_rows:
            rows, columns, width = rows[plan.logit_rows], np.searchsorted(wanted, columns[plan.logit_rows]), len(wanted)
        if name not in out:
            out[name] = np.zeros((batch.shape[0], width, *array.shape[1:]), np.float32)
        target = out[name]
        target[rows, columns] = array


@dataclass(frozen=True)
class _Piece:
    """The chunks of a step, and of each: the row of the batch, its tokens' columns there, the columns of all tokens of
    the row by position. width: of the cache, columns. embeds: rows in place of all chunks' tokens."""

    chunks: Sequence[Chunk]
    rows: Sequence[int]
    columns: Sequence[NDArray[np.intp]]
    keys: Sequence[NDArray[np.intp]]
    width: int
    embeds: NDArray[np.float32] | None

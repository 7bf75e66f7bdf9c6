"""Decoder: a graph with a head on an executor, run on padded batches."""

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import Backend, ExecutorOptions, Program, check_tensors, prepare
from mistral_portable.boundary.shared import gigabytes
from mistral_portable.cache import CacheManager, CacheSpec, Chunk, StepPlan
from mistral_portable.config import MistralConfig
from mistral_portable.engine.chunks import CHUNK, spec_of_plans
from mistral_portable.engine.core import Core
from mistral_portable.engine.drafting import Drafting
from mistral_portable.engine.loop import Loop
from mistral_portable.engine.model_drafting import ModelDrafting
from mistral_portable.engine.suffix_drafting import SuffixDrafting
from mistral_portable.errors import BusyError, CapacityError, ClosedError, InputError, MistralPortableError
from mistral_portable.forks import make_locks
from mistral_portable.graph import build, verify
from mistral_portable.graph.passes import (
    accept_embeddings,
    expose_attention_weights,
    expose_hidden_states,
    select_rows,
)
from mistral_portable.transformers.batch import Batch
from mistral_portable.transformers.cache import Cache
from mistral_portable.transformers.new_caches import DynamicCache
from mistral_portable.weights import Tensor

__all__ = ["ATTENTIONS", "HIDDEN_STATES", "MOST_ROWS", "Decoder", "Outputs"]

HIDDEN_STATES, ATTENTIONS = "hidden_states", "attentions"
"""Outputs that a program may expose besides its result."""

MOST_ROWS = 256
"""Rows of all caches that callers hold; as many again of the batch that runs without one, and of `loop`."""

Outputs = dict[str, NDArray[np.float32]]
"""A graph's outputs by name, each [B, T, ...]."""


class Decoder:
    """One or more programs of a model, one for each set of exposed outputs, which share a cache manager.

    Batches of several threads take turns; answers of `loop` are made between their steps.
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
            max_chunk=CHUNK,
            max_lanes=3 * MOST_ROWS,
        )
        plain = self._prepare(frozenset())
        self.manager = CacheManager(spec_of_plans(self._spec, plain))
        self._cores: dict[frozenset[str], Core] = {frozenset(): Core(plain, self.manager, given=self._graph.given)}
        self._caches: weakref.WeakSet[Cache] = weakref.WeakSet()  # those that callers hold
        make_locks(self, Decoder._make_locks)
        self._closed = False
        self.loop = Loop(
            self._core(frozenset()),
            lanes=MOST_ROWS,
            drafting=Drafting(SuffixDrafting(), vocab_size=config.vocab_size),
        )
        """Continues prompts of a causal LM; requests say whether their steps try drafts."""

    def loop_beside(self, assistant: "Decoder") -> Loop:
        """Another `loop`, whose steps try what a smaller model says.

        Raises InputError if that has another number of ids, ClosedError if one of both models is closed.
        """
        size, its = self.config.vocab_size, assistant.config.vocab_size
        if its != size:
            raise InputError(f"assistant_model has {its} token ids, and the model has {size}: take another")
        drafting = Drafting(ModelDrafting(assistant._core(frozenset())), vocab_size=size)
        return Loop(self._core(frozenset()), lanes=MOST_ROWS, drafting=drafting)

    def _make_locks(self) -> None:
        self._turn = threading.Lock()  # held for a batch: one at a time has temporary lanes, or moves a cache

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
        with self._turn:
            return self._run_in_turns(batch, exposed, rows) if cache is None else self._run(batch, cache, exposed, rows)

    def new_cache(self, rows: int, cache: DynamicCache | None = None) -> DynamicCache:
        """Make an empty cache for a caller to keep, or begin one that the caller has made. Raises BusyError if too few
        lanes are left."""
        with self._turn:
            return self._kept_cache(rows, cache=cache)

    @property
    def program(self) -> Program:
        """The program that exposes nothing besides its result. Raises ClosedError if the model is closed."""
        return self._core(frozenset()).program

    def close(self) -> None:
        """Release the threads and memory of all programs; later calls raise ClosedError."""
        with self._turn:
            self._closed = True
            self.loop.close()
            for core in self._cores.values():
                core.close()

    def _run_in_turns(self, batch: Batch, exposed: frozenset[str], columns: Sequence[int] | None) -> Outputs:
        """Run the rows of a batch in temporary lanes, as many at a time as there are."""
        out: Outputs = {}
        filled = [row for row, tokens in enumerate(batch.tokens) if tokens]
        for begin in range(0, len(filled), MOST_ROWS):
            rows = filled[begin : begin + MOST_ROWS]
            with closing(Cache(self.manager, len(rows), self._copy)) as cache:
                found = self._run(batch.take(rows), cache, exposed, columns)
            if len(rows) == batch.shape[0]:
                return found
            for name, array in found.items():
                if name not in out:
                    out[name] = _zeros(name, batch.shape[0], *array.shape[1:])
                out[name][rows] = array
        return out

    def _run(self, batch: Batch, cache: Cache, exposed: frozenset[str], rows: Sequence[int] | None) -> Outputs:
        cache.require_open()
        longest = max(len(old) + len(new) for old, new in zip(cache.columns, batch.columns, strict=True))
        if longest > self._spec.max_context:
            raise InputError(f"{longest} tokens exceed max_position_embeddings={self._spec.max_context}")
        core = self._core_with(cache, exposed)
        before = [self.manager.length(lane) for lane in cache.lanes]
        wanted = np.arange(batch.shape[1]) if rows is None else np.unique(np.asarray(rows, np.intp))
        out: Outputs = {}
        try:
            for piece in self._pieces(batch, cache, wanted):
                plan, outputs = core.run(piece.chunks)
                for name, array in outputs.items():
                    self._place(out, name, array, piece, plan, batch, wanted)
        except BaseException:
            self._undo(cache, before)
            raise
        cache.extend(batch.columns, batch.shape[1])
        if "logits" in out and rows is not None and not np.array_equal(rows, wanted):
            out["logits"] = out["logits"][:, np.searchsorted(wanted, rows)]
        return out

    def _core(self, exposed: frozenset[str]) -> Core:
        """The core whose program exposes these outputs; the first request prepares it and reads the weights again."""
        if self._closed:
            raise ClosedError("the model is closed: load it again")
        if exposed not in self._cores:
            self._cores[exposed] = Core(self._prepare(exposed), self.manager, given=self._graph.given)
        return self._cores[exposed]

    def _prepare(self, exposed: frozenset[str]) -> Program:
        graph = self._graph
        if HIDDEN_STATES in exposed:
            graph = expose_hidden_states(graph)
        if ATTENTIONS in exposed:
            graph = expose_attention_weights(graph)
        if self._selects_rows:
            graph = select_rows(graph, "logits")
        return prepare(self._backend, verify(graph), self._tensors, self._spec, self._options)

    def _core_with(self, cache: Cache, exposed: frozenset[str]) -> Core:
        """The core, with the cache's keys and values; they are moved if another one of the model holds them."""
        core = self._core(exposed)
        if cache.program != exposed and cache.get_seq_length():
            for lane in cache.lanes:
                core.adopt(lane, self._cores[cache.program])
        cache.program = exposed
        return core

    def _kept_cache(
        self, rows: int, sources: Sequence[int] | None = None, cache: DynamicCache | None = None
    ) -> DynamicCache:
        """Begin a cache that a caller keeps, while `_turn` is held. Raises BusyError if too few lanes are left."""
        if sum(len(cache) for cache in self._caches if cache.close.alive) + rows > MOST_ROWS:
            remedy = "pass use_cache=False, or let go of other caches"
            raise BusyError(f"{rows} rows more: caches have at most {MOST_ROWS} in all: {remedy}")
        cache = DynamicCache() if cache is None else cache
        cache.begin(self.manager, rows, self._copy, sources)
        self._caches.add(cache)
        return cache

    def _copy(self, cache: Cache, rows: Sequence[int]) -> Cache:
        """A cache with the content of some rows in lanes of its own, which share pages with theirs until one writes."""
        with self._turn:
            cache.require_open()
            copy = self._kept_cache(len(rows), [cache.lanes[row] for row in rows])
            copy.program = cache.program
            copy.extend([cache.columns[row] for row in rows], cache.get_seq_length())
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
        """Split the batch into steps of at most CHUNK tokens, each with all rows that have some left."""
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
                Chunk(
                    cache.lanes[row],
                    batch.tokens[row][span],
                    np.flatnonzero(requested[some]).tolist(),
                    None if batch.embeds is None else batch.embeds[row, some],
                )
                for row, span, some in zip(active, spans, columns, strict=True)
            ]
            yield _Piece(chunks, active, columns, [keys[row] for row in active], past + batch.shape[1])
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

    chunks: a chunk for each row of the batch that takes part. rows: for each chunk its row of the batch. columns: for
    each chunk its tokens' columns in the batch. keys: for each chunk the cache columns of all tokens of its row, in
    order of position. width: columns of the cache after the whole batch.
    """

    chunks: Sequence[Chunk]
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

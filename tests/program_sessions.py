"""ProgramSession: a program with its cache manager, for tests of one program over many steps."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import Backend, ExecutorOptions, Program, SavedLane, load_lane, prepare, save_lane
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.graph import Graph, build
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing import random_weights
from mistral_portable.weights import Tensor

__all__ = ["CONFIG", "WINDOW", "ProgramSession", "text"]

AnyProgram = TypeVar("AnyProgram", bound=Program)

WINDOW = 20
CONFIG = MistralConfig(
    vocab_size=40,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    sliding_window=WINDOW,
)


class ProgramSession(Generic[AnyProgram]):
    """A program of type `AnyProgram`, and the manager of its cache."""

    program: AnyProgram

    def __init__(
        self,
        backend: Backend,
        config: MistralConfig,
        graph: Graph | None,
        *,
        page_size: int | None,
        max_context: int = 400,
        max_chunk: int = 48,
        quantization: str | None = None,
        weights: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """graph: None: the config's, with the logits of requested rows. weights: None draws them. options: the
        executor's."""
        self.spec = CacheSpec.from_config(
            config, max_context=max_context, page_size=page_size, max_chunk=max_chunk, max_lanes=4
        )
        self.manager = CacheManager(self.spec)
        weights = weights or random_weights(build(config), 0, quantization)
        graph = graph or select_rows(build(config), "logits")
        self.program = prepare(backend, graph, weights, self.spec, ExecutorOptions(**options))  # type: ignore[assignment]

    def feed(self, lane: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens in chunks, one step each; the logits after each token."""
        size = self.spec.max_chunk
        chunks = [tokens[begin : begin + size] for begin in range(0, len(tokens), size)]
        return np.concatenate([self.step([Chunk(lane, chunk, range(len(chunk)))]) for chunk in chunks])

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run one step: the logits of the requested rows. One that fails is undone."""
        plan = self.manager.plan(chunks)
        try:
            logits: NDArray[np.float32] = self.program.step(plan)["logits"]
        except BaseException:
            self.manager.undo(plan)
            raise
        return logits

    def together(self, lanes: Sequence[int], token: int = 1) -> NDArray[np.float32]:
        """Feed a token to each of these lanes in one step; the logits after it, a row for each."""
        return self.step([Chunk(lane, [token], [0]) for lane in lanes])

    def begin(self, tokens: Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """Open a lane and feed it these tokens; the lane and their logits."""
        lane = self.manager.open()
        return lane, self.feed(lane, tokens)

    def decode(self, lane: int, count: int) -> None:
        """Feed tokens in steps of one each."""
        for token in text(count, seed=1):
            self.feed(lane, [token])

    def save(self, lane: int) -> SavedLane:
        return save_lane(self.program, self.manager, lane)

    def load(self, saved: SavedLane) -> int:
        return load_lane(self.program, self.manager, saved)


def text(length: int, seed: int = 0) -> list[int]:
    """Random token ids of CONFIG's vocabulary."""
    return [int(token) for token in np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length)]

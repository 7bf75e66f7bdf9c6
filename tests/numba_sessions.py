"""Programs of the Numba executor with their cache managers, through the protocol."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mistral_portable_numba import BACKEND
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions, SavedLane, load_lane, prepare, save_lane
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.graph import Graph, build
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing import random_weights

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
KV_CACHES = ("float32", "float16", "q8_0")


class Session:
    """A program with its cache manager."""

    def __init__(
        self,
        config: MistralConfig = CONFIG,
        graph: Graph | None = None,
        *,
        max_context: int = 400,
        max_chunk: int = 48,
        quantization: str | None = "q4_0",
        **options: Any,
    ) -> None:
        self.spec = CacheSpec.from_config(
            config,
            max_context=max_context,
            page_size=BACKEND.capabilities.page_size,
            max_chunk=max_chunk,
            max_lanes=4,
        )
        self.manager = CacheManager(self.spec)
        weights = random_weights(build(config), 0, quantization)
        graph = graph or select_rows(build(config), "logits")
        self.program = prepare(BACKEND, graph, weights, self.spec, ExecutorOptions(**{"threads": 2} | options))

    def feed(self, lane: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens in chunks, one step each; the logits after each token."""
        return np.concatenate(
            [
                self.program.step(self.manager.plan([Chunk(lane, chunk, range(len(chunk)))]))["logits"]
                for chunk in pieces(tokens, self.spec.max_chunk)
            ]
        )

    def begin(self, tokens: Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """Open a lane and feed it these tokens; the lane and their logits."""
        lane = self.manager.open()
        return lane, self.feed(lane, tokens)

    def save(self, lane: int) -> SavedLane:
        return save_lane(self.program, self.manager, lane)

    def load(self, saved: SavedLane) -> int:
        return load_lane(self.program, self.manager, saved)


def pieces(tokens: Sequence[int], size: int) -> list[Sequence[int]]:
    return [tokens[begin : begin + size] for begin in range(0, len(tokens), size)]


def text(length: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length)]

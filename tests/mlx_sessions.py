"""Session: an MLX program with its cache manager, for tests of one program over many steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mistral_portable_mlx.backend import MLXBackend
from mistral_portable_mlx.program import MLXProgram
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.graph import Graph, build
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing import random_weights

CONFIG = MistralConfig(
    vocab_size=40,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    sliding_window=20,
)


class Session:
    """A program of random weights, and the manager of its cache."""

    def __init__(
        self,
        config: MistralConfig = CONFIG,
        graph: Graph | None = None,
        *,
        max_context: int = 400,
        max_chunk: int = 48,
        quantization: str | None = None,
        memory: int | None = None,
        **options: Any,
    ) -> None:
        sizes = {"max_context": max_context, "max_chunk": max_chunk, "max_lanes": 4}
        self.spec = CacheSpec.from_config(config, page_size=None, **sizes)
        self.manager = CacheManager(self.spec)
        weights = random_weights(build(config), 0, quantization)
        graph = graph or select_rows(build(config), "logits")
        program = prepare(MLXBackend(memory), graph, weights, self.spec, ExecutorOptions(**options))
        assert isinstance(program, MLXProgram)
        self.program = program

    def feed(self, lane: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Run a step for each chunk; returns the logits of every token."""
        size = self.spec.max_chunk
        chunks = [tokens[begin : begin + size] for begin in range(0, len(tokens), size)]
        plans = (self.manager.plan([Chunk(lane, chunk, range(len(chunk)))]) for chunk in chunks)
        return np.concatenate([self.program.step(plan)["logits"] for plan in plans])

    def begin(self, tokens: Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """Open a lane and feed it; returns the lane and the logits."""
        lane = self.manager.open()
        return lane, self.feed(lane, tokens)

    def decode(self, lane: int, count: int) -> None:
        """Run steps of one token each."""
        for token in text(count, seed=1):
            self.feed(lane, [token])


def text(length: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return [int(token) for token in np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length)]

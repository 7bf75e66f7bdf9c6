"""Programs of the MLX executor with their cache managers, through the protocol."""

import gc
from typing import Any

import mlx.core as mx
from mistral_portable_mlx.backend import MLXBackend
from mistral_portable_mlx.program import MLXProgram
from program_sessions import CONFIG, ProgramSession, text

from mistral_portable.config import MistralConfig
from mistral_portable.graph import Graph

__all__ = ["CONFIG", "KV_CACHES", "WIDE", "Session", "in_use", "text"]

WIDE = CONFIG.with_window(2000)
KV_CACHES = [None, "q8_0"]


def in_use() -> int:
    """Bytes that MLX holds, without those of earlier tests' programs that wait for the garbage collector."""
    gc.collect()
    return mx.get_active_memory()


class Session(ProgramSession[MLXProgram]):
    """An MLX program."""

    def __init__(
        self,
        config: MistralConfig = CONFIG,
        graph: Graph | None = None,
        *,
        memory: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(MLXBackend(memory), config, graph, page_size=None, **options)

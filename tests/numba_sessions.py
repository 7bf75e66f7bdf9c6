"""Programs of the Numba executor with their cache managers, through the protocol."""

from typing import Any

from mistral_portable_numba import BACKEND
from mistral_portable_numba.program import NumbaProgram
from program_sessions import CONFIG, WINDOW, ProgramSession, text

from mistral_portable.config import MistralConfig
from mistral_portable.graph import Graph

__all__ = ["CONFIG", "KV_CACHES", "WINDOW", "Session", "text"]

KV_CACHES = ("float32", "float16", "q8_0")


class Session(ProgramSession[NumbaProgram]):
    """A Numba program, by default of Q4_0 weights and two threads."""

    def __init__(
        self,
        config: MistralConfig = CONFIG,
        graph: Graph | None = None,
        *,
        quantization: str | None = "q4_0",
        threads: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(
            BACKEND,
            config,
            graph,
            page_size=BACKEND.capabilities.page_size,
            quantization=quantization,
            threads=threads,
            **options,
        )

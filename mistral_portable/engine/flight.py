"""Flight: a step that has begun, whose outputs have not been handed out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import Chunk
from mistral_portable.engine.request import Request
from mistral_portable.engine.scheduler import Turn

__all__ = ["Flight"]


@dataclass(frozen=True)
class Flight:
    """A step of requests that are in no other one. Several may have begun where the program has stages.

    drafts: tokens that it tries, by request. outputs: waits for the step. begin, chosen, start: when the loop came to
    it, when its drafts were chosen, when the program began, by time.perf_counter.
    """

    turn: Turn[Request[Any]]
    chunks: Sequence[Chunk]
    drafts: Mapping[Request[Any], Sequence[int]]
    outputs: Callable[[], Mapping[str, NDArray[np.float32]]]
    begin: float
    chosen: float
    start: float

"""UnderWay: a step that has begun, whose tokens have not been read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mistral_portable.boundary import Step
from mistral_portable.engine.request import Completion, Request
from mistral_portable.engine.scheduler import Turn

__all__ = ["UnderWay"]


@dataclass(frozen=True)
class UnderWay:
    """A greedy step: it makes one token for each of the completions, which are part of the turn. follows: whether it
    was begun while another one was under way."""

    step: Step
    turn: Turn[Request[Any]]
    completions: Sequence[Completion]
    follows: bool

    def count(self, request: Request[Any]) -> int:
        """Tokens of a request that it reads: it may still fail."""
        return sum(count for other, count in zip(self.turn.requests, self.turn.counts, strict=True) if other is request)

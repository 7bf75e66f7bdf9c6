"""UnderWay: a step that has begun, whose tokens have not been read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mistral_portable.boundary import DrawnStep, Step
from mistral_portable.engine.request import Completion, Request
from mistral_portable.engine.scheduler import Turn
from mistral_portable.errors import NumericsError
from mistral_portable.sampling import Sampled

__all__ = ["UnderWay"]

_NOT_FINITE = (
    "a logit is not finite: the weights are corrupt or the dtype overflowed; "
    "try float32, another backend, or `mistral-portable verify`"
)


@dataclass(frozen=True)
class UnderWay:
    """A step whose device chooses the tokens: one for each of the completions, which are part of the turn.

    rows: the row of each of them. drawn: the step, if its tokens are drawn; None: they are those of the highest logits.
    follows: whether it was begun while another one was under way.
    """

    step: Step
    drawn: DrawnStep | None
    turn: Turn[Request[Any]]
    rows: Mapping[Completion, int]
    follows: bool

    def count(self, request: Request[Any]) -> int:
        """Tokens of a request that it reads: it may still fail."""
        return sum(count for other, count in zip(self.turn.requests, self.turn.counts, strict=True) if other is request)

    def without(self, completion: Completion) -> "UnderWay":
        """The step, in which a completion that decodes takes part in vain: it had another token to read."""
        decoding = tuple(request for request in self.turn.decoding if request is not completion)
        rows = {other: row for other, row in self.rows.items() if other is not completion}
        return replace(self, turn=Turn(decoding, self.turn.reading), rows=rows)

    def choose(self, completion: Completion, token: int) -> Sampled | Exception:
        """Return the token that the device has chosen for a completion; of -1 the one that the sampler chooses."""
        if token >= 0:
            return completion.sampler.drawn(token) if completion.drawn else Sampled(token)
        if self.drawn is None:
            return NumericsError(_NOT_FINITE)
        try:
            return completion.sampler.sample(self.drawn.logits(self.rows[completion]))
        except Exception as error:
            return error

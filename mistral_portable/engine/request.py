"""Requests: tokens that a Loop reads for somebody, and what it makes for them."""

from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mistral_portable.sampling import Sampled, Sampler, SamplingParams

__all__ = ["Completion", "Request", "Scoring", "salt_of"]

Made = TypeVar("Made")

_MOST_FORCED = 64  # tokens without a step of their own in a row: finding one takes up to 0.1 ms


class Request(Generic[Made]):
    """A sequence in a Loop, which appends to `made`; its consumer takes from there, in any thread.

    tokens: ids to read; those of an answer are appended. fed: how many of them are in the cache. lane: where; None
    while the request waits for one. cached: how many of the tokens were in the cache before it began; None until then.
    priority: of two that wait the higher one comes first. user: users share the steps alike. submitted: when, by
    time.perf_counter. finished: nothing more will come; `error` says why if this is not the end. cancelled: its
    consumer has left it. listener: called by the thread that runs the steps if something is new. caller: the same for
    requests that one caller waits for together. by_main: whether the main thread has submitted it. thread: the id of
    the thread that has.
    """

    chunk: int | None = None
    """The most tokens in a step; None: as many as the loop likes."""
    backlog = 64
    """Things in `made` that nobody has taken, at which the request stands still."""
    embeds: NDArray[np.float32] | None = None
    """Rows [n, hidden_size] in place of the embeddings of the first n tokens, whose ids mean nothing."""
    adapters: Sequence[float] = ()
    """The weight of each of the model's adapters; (): none of them."""

    def __init__(self, tokens: Sequence[int], *, priority: int = 0, user: str = "", cache_salt: str = "") -> None:
        """cache_salt: only requests with the same one find each other's tokens in the cache."""
        self.tokens = list(tokens)
        self.priority = priority
        self.user = user
        self.cache_salt = cache_salt
        self.cached: int | None = None
        self.kept = 0  # tokens in the cache that others can find
        self.made: deque[Made] = deque()
        self.fed = 0
        self.lane: int | None = None
        self.submitted = 0.0
        self.finished = self.cancelled = False
        self.error: BaseException | None = None
        self.listener: Callable[[], object] | None = None
        self.caller: Hashable = None
        self.by_main = True
        self.thread = 0

    @property
    def salt(self) -> Hashable:
        """Requests with the same one may find each other's tokens in the cache: also their adapters are the same."""
        return salt_of(self.cache_salt, self.adapters)

    def rows(self, count: int) -> Sequence[int]:
        """Which of the next `count` tokens want their logits: indices into them."""
        raise NotImplementedError

    @property
    def keeps(self) -> bool:
        """Whether later requests may find its tokens in the cache."""
        return self.embeds is None

    @property
    def findable(self) -> int:
        """How many of its first tokens need not be read if they are in the cache: no logits are wanted there."""
        raise NotImplementedError

    def lacks(self, under_way: int) -> bool:
        """Whether something that a step has made for it is lost. under_way: tokens of it that are still to be read."""
        raise NotImplementedError

    def next(self) -> Made:
        """Take what was made first, or raise the request's error; one of both must be there."""
        if self.made:
            return self.made.popleft()
        assert self.error is not None
        self.cancelled = True  # nothing more to take
        raise self.error

    @property
    def over(self) -> bool:
        """Whether its consumer has nothing more to take."""
        # `finished` first: what was made last is in `made` before it is set.
        return self.cancelled or (self.finished and self.error is None and not self.made)


class Completion(Request[Sampled]):
    """Continues a prompt, token after token.

    limit: the most tokens of the answer. prefill_s: seconds from its submission to the first token. decode_s: of the
    steps that made the others. drafted: tokens that steps have tried; accepted: those that needed no step of their own.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        ends: Collection[int],
        max_context: int,
        priority: int = 0,
        user: str = "",
        cache_salt: str = "",
        embeds: NDArray[np.float32] | None = None,
        adapters: Sequence[float] = (),
        drafts: int = 0,
        prediction: Sequence[int] = (),
        piece: Callable[[int], bytes] | None = None,
    ) -> None:
        """prompt: 1 to max_context ids. ends: ids that end the answer, beside `params.max_tokens` and max_context.
        embeds: a row for each id of the prompt; rules then look at the answer alone. drafts: the most tokens that a
        step tries beyond the newest one; none with embeds. prediction: ids that the answer may consist of, in part.
        piece: that of Sampler."""
        super().__init__(prompt, priority=priority, user=user, cache_salt=cache_salt)
        self.embeds = embeds
        self.adapters = adapters
        self.drafts = drafts if embeds is None else 0
        self.prediction = prediction
        self.drafted = self.accepted = 0
        self.sampler = Sampler(params, prompt_tokens=prompt if embeds is None else (), end_tokens=ends, piece=piece)
        self.prefill_s = self.decode_s = 0.0
        self.ends = ends
        room = max_context - len(prompt) + 1  # the last token need not be fed
        self.limit = room if params.max_tokens is None else min(room, params.max_tokens)
        self._most = len(prompt) + self.limit

    @property
    def greedy(self) -> bool:
        """Whether its tokens are those of the highest logits, which a device may choose."""
        return self.sampler.params.is_greedy

    @property
    def drawn(self) -> bool:
        """Whether a device may draw its tokens, with its numbers."""
        return self.sampler.params.is_drawn

    @property
    def left(self) -> int:
        """The most tokens that are still to come."""
        return self._most - len(self.tokens)

    @property
    def findable(self) -> int:
        """All but the last one, whose logits are wanted; none of embeddings, whose ids mean nothing."""
        return len(self.tokens) - 1 if self.embeds is None else 0

    def rows(self, count: int) -> Sequence[int]:
        return (count - 1,) if self.fed + count >= len(self.tokens) else ()  # greater: its newest id is not known yet

    def take(self, sampled: Sampled) -> int:
        """Append a token to the answer, and those behind it that a grammar leaves alone; return their number.

        Raises InputError if the grammar fails behind the first one.
        """
        self._append(sampled)
        if self.finished:
            return 1
        forced = self.sampler.forced(min(_MOST_FORCED, self.left))
        for one in forced:
            self._append(one)
        return 1 + len(forced)

    def _append(self, sampled: Sampled) -> None:
        self.made.append(sampled)  # first: if Ctrl-C comes here, it is seen that the token is lost
        self.tokens.append(sampled.token)
        self.finished = self._has_ended()

    def lacks(self, under_way: int) -> bool:
        """Whether a token of its answer is lost, or that it was the last one."""
        if self.fed > len(self.tokens) - 1 + under_way or self.sampler.chosen > self._made:
            return True
        return self._has_ended() and not self.finished

    @property
    def _made(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens) - self._most + self.limit

    def _has_ended(self) -> bool:
        made = self._made
        return made == self.limit or (made > 0 and self.tokens[-1] in self.ends)


class Scoring(Request[NDArray[np.float32]]):
    """Makes an output of the graph behind tokens, step after step: logits, float32 [rows, vocab_size], or embedding,
    float32 [rows, hidden_size]."""

    backlog = 2  # a part may take hundreds of megabytes

    def __init__(
        self,
        tokens: Sequence[int],
        *,
        first: int = 0,
        chunk: int | None = None,
        output: str = "logits",
        adapters: Sequence[float] = (),
    ) -> None:
        """first: the first token whose rows are wanted; those of all later ones are, too. chunk: tokens of a step."""
        super().__init__(tokens)
        self.adapters = adapters
        self.chunk = chunk
        self.output = output
        self._first = first  # of those whose rows are still to be made

    @property
    def keeps(self) -> bool:
        """No: texts are scored once."""
        return False

    @property
    def findable(self) -> int:
        """Those before the first one whose rows are still wanted."""
        return self._first

    def rows(self, count: int) -> Sequence[int]:
        return range(max(0, self._first - self.fed), count)

    def take(self, rows: NDArray[np.float32]) -> None:
        """Append what a step has made."""
        if len(rows):
            self.made.append(rows)
        self._first = max(self._first, self.fed)
        self.finished = self._first == len(self.tokens)

    def lacks(self, under_way: int) -> bool:
        """Whether rows are lost, or that they were the last ones."""
        return self.fed > self._first or (self._first == len(self.tokens) and not self.finished)


def salt_of(cache_salt: str, adapters: Sequence[float]) -> Hashable:
    """Name what may share the cache: the salt alone for texts without adapters, as files of sessions have them."""
    return (cache_salt, tuple(adapters)) if adapters else cache_salt

"""Scheduler: which requests take part in the next step, and with how many tokens. Policy over integers, no threads."""

from collections import Counter
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Protocol, TypeVar

from mistral_portable.engine.pace import Pace

__all__ = ["Lanes", "Scheduler", "Turn"]

Key = TypeVar("Key", bound=Hashable)
AnyKey = TypeVar("AnyKey", bound=Hashable, contravariant=True)


class Lanes(Protocol[AnyKey]):
    """The lanes that `Scheduler.admit` hands out."""

    def is_ready(self, key: AnyKey) -> bool:
        """Whether a request that waits would rather begin now than a little later."""

    def begin(self, key: AnyKey) -> int | None:
        """Give a request a lane; return the number of its tokens that are in it. None: there is no lane, or no room."""

    def put_aside(self, key: AnyKey) -> None:
        """Take the lane of a request away."""


@dataclass(frozen=True)
class Turn(Generic[Key]):
    """One step.

    decoding: requests with one token each, their newest. reading: (request, number of its next prompt tokens).
    """

    decoding: tuple[Key, ...] = ()
    reading: tuple[tuple[Key, int], ...] = ()

    @cached_property
    def requests(self) -> tuple[Key, ...]:
        """All that take part: first those that decode."""
        return (*self.decoding, *(key for key, _ in self.reading))

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The number of tokens of each of `requests`."""
        return (*(1 for _ in self.decoding), *(count for _, count in self.reading))


@dataclass
class _Job(Generic[Key]):
    key: Key
    left: int  # tokens that are still to be read before it decodes
    priority: int
    user: str
    chunk: int
    since: int  # tokens of prompts that had been dealt out when it came
    caller: Hashable
    length: int = 0  # tokens that it has in its lane
    stalled: bool = False
    answering: bool = False  # it has decoded in its lane, and reads tokens of its answer


class Scheduler(Generic[Key]):
    """Deals out steps to requests, which wait for a lane, read their prompts and then decode.

    Decoding comes first: every request that decodes has one token in every step. Prompts share the rest of a budget,
    in chunks; before them come answers of which several tokens are to be read (`read_more`). Requests of a higher
    priority always come before those of a lower one. Among equals, the user who has been dealt the fewest tokens comes
    first, and of a user's requests the one with the fewest tokens left to read, less those that were dealt out while it
    waited: so a prompt of n tokens is overtaken for n tokens at most.

    Example: budget 512, and prompts of 700 and 100 tokens. The first step reads the 100 and 412 of the 700. From then
    on the short one decodes, a token in each step, beside as many of the 288 that are left as do not slow it down too
    much (`Pace`); beside all 288 if both are of one caller, who waits for both.
    """

    def __init__(self, budget: int, short: int | None = None) -> None:
        """budget: tokens of prompts in a step. short: the most of them where memory is short, and while others decode,
        who may leave room for fewer (`Pace`); None: as many."""
        self._whole = self._budget = budget
        self._short = budget if short is None else min(short, budget)
        self._waiting: dict[Key, _Job[Key]] = {}
        self._reading: dict[Key, _Job[Key]] = {}
        self._decoding: dict[Key, _Job[Key]] = {}
        self._asked = Counter[str]()  # requests by user
        self._dealt: dict[str, int] = {}  # tokens by user
        self._total = 0
        self._pace = Pace()
        self._steady: Turn[Key] | None = None  # the step of all that decode; kept, as most steps are the same

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting or key in self._reading or key in self._decoding

    @property
    def asked(self) -> bool:
        """Whether a request waits for a lane, or is stalled without one."""
        return bool(self._waiting)

    @property
    def waiting(self) -> list[Key]:
        """The requests without a lane, but not those that are stalled."""
        return [key for key, job in self._waiting.items() if not job.stalled]

    @property
    def requests(self) -> list[Key]:
        """All requests."""
        return [*self._waiting, *self._reading, *self._decoding]

    @property
    def held(self) -> list[Key]:
        """The requests with a lane."""
        return [*self._reading, *self._decoding]

    def add(
        self,
        key: Key,
        tokens: int,
        *,
        priority: int = 0,
        user: str = "",
        chunk: int | None = None,
        caller: Hashable = None,
    ) -> None:
        """Let a request wait for a lane. tokens: to be read. chunk: the most of them in a step; None: the budget.
        caller: who waits for this request and others together; None: for this one alone."""
        if user not in self._dealt:  # one who comes late does not catch up with the others
            self._dealt[user] = min(self._dealt.values(), default=0)
        self._asked[user] += 1
        self._waiting[key] = _Job(key, tokens, priority, user, chunk or self._whole, self._total, caller)

    def remove(self, key: Key) -> None:
        """Forget a request: it has ended."""
        job = self._job(key)
        self._steady = None
        for jobs in (self._waiting, self._reading, self._decoding):
            jobs.pop(key, None)
        self._asked[job.user] -= 1
        if not self._asked[job.user]:
            del self._asked[job.user], self._dealt[job.user]

    def stall(self, key: Key, stalled: bool) -> None:
        """Leave a request out of steps, or no longer: whoever takes its tokens does not keep up."""
        self._steady = None
        self._job(key).stalled = stalled

    def agrees(self, key: Key, read: int, has_lane: bool) -> bool:
        """Whether the notes on a request are whole, and as the caller's: after Ctrl-C amid a call they may not be.

        read: tokens that it has in its lane.
        """
        places = [jobs for jobs in (self._waiting, self._reading, self._decoding) if key in jobs]
        if len(places) != 1:
            return False
        job, waits = places[0][key], places[0] is self._waiting
        return job.length == read and waits != has_lane and (places[0] is not self._reading or job.left > 0)

    def is_stalled(self, key: Key) -> bool:
        """Whether a request is left out of steps."""
        return self._job(key).stalled

    def admit(self, lanes: Lanes[Key], under_way: Sequence[Turn[Key]] = ()) -> None:
        """Let requests that wait begin, as many as there are lanes for.

        Where there is none, one takes the lane of a request that is stalled, or of one of a lower priority: that one is
        put aside, and must be read again. under_way: steps that have begun, whose requests keep their lanes.
        """
        busy = {key for turn in under_way for key in turn.requests}
        for job in sorted((job for job in self._waiting.values() if not job.stalled), key=self._order):
            if not lanes.is_ready(job.key):
                continue
            while (known := lanes.begin(job.key)) is None:
                victim = self._victim(job.priority, busy)
                if victim is None:
                    return
                self.put_aside(victim.key)
                lanes.put_aside(victim.key)
            job.left -= known
            job.length = known
            self._reading[job.key] = job
            del self._waiting[job.key]

    def next(self, under_way: Sequence[Turn[Key]] = (), parts: int = 1) -> Turn[Key]:
        """Return the next step.

        parts: the number of steps that are under way together, each with about as many requests as another. under_way:
        those that have begun, whose requests are in no other. Example: 6 requests decode, parts 4: steps of 2, 2, 1, 1.
        """
        if parts > 1:
            return self._part(under_way, parts)
        if not self._reading:
            if self._steady is None:
                self._steady = Turn(self._unstalled())
            return self._steady
        decoding = self._unstalled()
        return Turn(decoding, self._share(self._room(len(decoding))))

    def _part(self, under_way: Sequence[Turn[Key]], parts: int) -> Turn[Key]:
        busy = {key for turn in under_way for key in turn.requests}
        jobs = [job for job in (*self._reading.values(), *self._decoding.values()) if not job.stalled]
        free = sum(job.key not in busy for job in jobs)
        most = min(-(-len(jobs) // parts), -(-free // (parts - len(under_way))))
        decoding = tuple(key for key in self._unstalled() if key not in busy)[:most]
        return Turn(decoding, self._share(self._room(len(decoding)), busy, most - len(decoding)))

    def shed(self) -> Key:
        """Put aside a request with a lane: a stalled one, or else the least urgent, of these the latest; return it."""
        held = [*self._reading.values(), *self._decoding.values()]
        job = min(held, key=lambda job: (not job.stalled, job.priority, -job.since))
        self.put_aside(job.key)
        return job.key

    def shorten(self) -> bool:
        """Let steps read no more than the short budget, since memory is short; False if they already do not."""
        shorter = self._short < self._budget
        self._budget = self._short
        return shorter

    def lengthen(self) -> None:
        """Let steps read as many tokens as ever."""
        self._budget = self._whole

    def took_place(self, turn: Turn[Key]) -> None:
        """Note that a step has taken place: what it has read is no longer left."""
        for key, count in turn.reading:
            job = self._reading[key]
            job.left -= count
            job.length += count
            if not job.left:
                self._steady = None
                self._decoding[key] = job
                del self._reading[key]
            self._dealt[job.user] += count
            self._total += count
        for key in turn.decoding:
            job = self._decoding[key]
            job.length += 1
            self._dealt[job.user] += 1

    def advance(self, key: Key, tokens: int) -> None:
        """Note that a request which decodes has more tokens in its lane than its turn had, drafted ones; or fewer, by a
        negative number, as its step was in vain."""
        job = self._decoding[key]
        job.length += tokens
        self._dealt[job.user] += tokens

    def read_more(self, key: Key, tokens: int) -> None:
        """Let a request that decodes read the newest `tokens` of its answer first, in chunks as a prompt."""
        self._steady = None
        job = self._reading[key] = self._decoding[key]
        job.left = tokens
        job.answering = True
        del self._decoding[key]  # last: Ctrl-C may come at any point, and leaves a request in two places, not in none

    def put_aside(self, key: Key) -> None:
        """Take the lane of a request, which waits for another one and reads its prompt and its answer again."""
        job = self._job(key)
        if key in self._decoding:
            job.left = 1  # its newest token
            self._steady = None
        job.left, job.length, job.answering = job.left + job.length, 0, False
        self._waiting[key] = job
        self._reading.pop(key, None)
        self._decoding.pop(key, None)

    def observe(self, turn: Turn[Key], seconds: float) -> None:
        """Learn from the time that a step has taken how many tokens of prompts the next ones can read beside others."""
        self._pace.observe(len(turn.decoding), sum(count for _, count in turn.reading), seconds)

    def _job(self, key: Key) -> _Job[Key]:
        return self._waiting.get(key) or self._reading.get(key) or self._decoding[key]

    def _order(self, job: _Job[Key]) -> tuple[int, int, int]:
        return -job.priority, self._dealt[job.user], job.left + job.since

    def _victim(self, priority: int, busy: Set[Key]) -> _Job[Key] | None:
        """The request whose lane another one of this priority may take: stalled, or else less urgent; the latest."""
        held = [job for job in (*self._reading.values(), *self._decoding.values()) if job.key not in busy]
        fitting = [job for job in held if job.stalled] or [job for job in held if job.priority < priority]
        return min(fitting, key=lambda job: (job.priority, -job.since), default=None)

    def _room(self, decoding: int) -> int:
        """Tokens of prompts for the next step."""
        if not decoding or self._one_caller():
            return self._budget
        return min(self._short, self._pace.room(decoding))

    def _one_caller(self) -> bool:
        """Whether all that have a lane are of one caller: the sum of their steps matters then, and no single one."""
        callers = {job.caller for job in (*self._reading.values(), *self._decoding.values())}
        return len(callers) == 1 and None not in callers

    def _unstalled(self) -> tuple[Key, ...]:
        return tuple(key for key, job in self._decoding.items() if not job.stalled)

    def _share(self, room: int, busy: Set[Key] = frozenset(), most: int | None = None) -> tuple[tuple[Key, int], ...]:
        """Deal out `room` tokens to `most` requests that read, and are not busy."""
        shares, short = list[tuple[Key, int]](), self._short
        reading = [job for job in self._reading.values() if not (job.stalled or job.key in busy)]
        for job in sorted(reading, key=lambda job: (not job.answering, self._order(job)))[:most]:
            if room <= 0:
                break
            count = min(job.left, job.chunk, room)
            if job.chunk <= self._short:  # together, too: that many logits of all tokens, say
                count = min(count, short)
                short -= count
            if count:
                shares.append((job.key, count))
                room -= count
        return tuple(shares)

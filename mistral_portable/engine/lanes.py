"""RequestLanes: opens and closes lanes of the cache for requests, with what is known of their tokens."""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mistral_portable.cache import CacheManager, common_length
from mistral_portable.engine.request import Request
from mistral_portable.engine.scheduler import Scheduler
from mistral_portable.engine.under_way import UnderWay
from mistral_portable.errors import BusyError, CapacityError

__all__ = ["RequestLanes"]

_Request = Request[Any]

_WORTH_WAITING = 32  # tokens in common with a prompt that is being read


@dataclass(frozen=True)
class _Refused:
    """A request that found no room beside some lanes, of so many bytes with all that is kept."""

    request: _Request
    error: CapacityError
    lanes: tuple[int, ...]
    bytes: int

    def beside(self, request: _Request, manager: CacheManager) -> bool:
        """Whether this one would find no room again: to look for it takes a millisecond where much is kept."""
        return request is self.request and self.lanes == manager.lanes and self.bytes == manager.bytes_in_use


class RequestLanes:
    """The lanes that a Scheduler hands out. What a request has read is kept, for others that begin alike."""

    def __init__(
        self, manager: CacheManager, scheduler: Scheduler[_Request], under_way: Iterable[UnderWay], most: int
    ) -> None:
        """under_way: the steps that have begun, as it is when asked. most: the most lanes at a time."""
        self._manager = manager
        self._scheduler = scheduler
        self._under_way = under_way
        self._all = most
        self._most = most  # fewer where memory was short
        group = manager.spec.groups[0]
        # A lane in one piece is never full.
        self._page = manager.spec.max_context + 1 if group.ring else group.page_size
        self._compared: dict[_Request, weakref.WeakKeyDictionary[_Request, int]] = {}  # for those that wait
        self._refused: _Refused | None = None  # who asked last found no room

    def is_ready(self, request: _Request) -> bool:
        """Whether its tokens are known, and no other request reads some that this one begins with and could find."""
        if any(request in begun.rows for begun in self._under_way):  # it was put aside meanwhile
            return False
        if not self._manager.keeps:
            return True
        for other in self._scheduler.held:
            alike, read = self._alike(request, other), self._read(other)
            goes_on = other.priority >= request.priority and not self._scheduler.is_stalled(other)
            if alike >= _WORTH_WAITING and read < alike and goes_on:
                return False
        return True

    def begin(self, request: _Request) -> int | None:
        """Open a lane with what is known of a request's tokens; return their number, or None if there is no room."""
        if self._refused is not None and self._refused.beside(request, self._manager):
            return None
        self._refused = None
        if len(self._scheduler.held) >= self._most:
            return None
        # A page that is not full is kept when somebody asks for it, and so is a lane in one piece.
        for other in self._scheduler.held:
            if self._alike(request, other) >= max(_WORTH_WAITING, other.kept + 1):
                self._keep(other, whole=True)
        try:
            request.lane, request.fed = self._manager.resume(
                request.tokens[: request.findable], salt=request.salt, length=len(request.tokens), owner=self
            )
        except BusyError:
            return None
        except CapacityError as error:
            self._refused = _Refused(request, error, self._manager.lanes, self._manager.bytes_in_use)
            return None
        request.cached = request.fed if request.cached is None else request.cached
        self._compared.pop(request, None)
        return request.fed

    def put_aside(self, request: _Request) -> None:
        """Close the lane of a request that goes on later."""
        self._close(request)

    def end(self, request: _Request) -> None:
        """Close the lane of a request that has ended, if it has one; others may use as many as ever, and long steps."""
        self._compared.pop(request, None)
        if self._refused is not None and self._refused.request is request:
            self._refused = None
        self._close(request)
        self._most = self._all
        self._scheduler.lengthen()

    def close_lost(self) -> None:
        """Close lanes that no request has: Ctrl-C came while one was opened or closed."""
        held = {request.lane for request in self._scheduler.requests}
        for lane in self._manager.lanes_of(self):
            if lane not in held:
                self._manager.close(lane)

    def refusal(self) -> tuple[list[_Request], Exception]:
        """Requests that wait in vain, and why: none of these lanes is in use, and yet there is no room for them."""
        if self._refused is not None:
            return [self._refused.request], self._refused.error
        return self._scheduler.waiting, BusyError("every lane is held by others: close one or raise max_lanes")

    def give_way(self) -> bool:
        """Free memory, of which a step had too little: by shorter steps, or else of what is kept, or the lane of one
        request. False: there is none of these.

        Until another one ends, steps stay short, and no more lanes are opened than are left then.
        """
        if self._scheduler.shorten():
            return True
        if self._manager.forget():
            return True
        if len(self._scheduler.held) == 1:
            return False
        self._close(self._scheduler.shed())
        self._most = len(self._scheduler.held)
        return True

    def make_known(self, request: _Request) -> None:
        """Let others find the full pages that a request has filled since the last time."""
        if min(request.fed, len(request.tokens)) >= request.kept + self._page:
            self._keep(request, whole=False)

    def _alike(self, request: _Request, other: _Request) -> int:
        """The number of tokens that a request which waits has in common with another one, from the first on."""
        if request.salt != other.salt or not other.keeps:
            return 0
        known = self._compared.setdefault(request, weakref.WeakKeyDictionary())
        if other not in known:
            known[other] = common_length(request.tokens[: request.findable], other.tokens)
        return known[other]

    def _read(self, request: _Request) -> int:
        """Tokens of a request in the cache, without those of steps that may still fail."""
        return request.fed - sum(begun.count(request) for begun in self._under_way)

    def _keep(self, request: _Request, *, whole: bool) -> None:
        """Let others find the request's tokens in the cache."""
        known = min(self._read(request), len(request.tokens))
        if request.keeps and request.lane is not None:
            self._manager.keep(request.lane, request.tokens[:known], salt=request.salt, whole=whole)
            request.kept = known if whole else known // self._page * self._page

    def _close(self, request: _Request) -> None:
        lane = request.lane
        if lane is not None:
            if request.error is None:
                self._keep(request, whole=True)
            request.lane = None  # before: whoever is interrupted here must not close it again, when others have it
            self._manager.close(lane)
        request.fed = request.kept = 0

"""Caller: the requests of one call of `Loop.run`."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

from mistral_portable.engine.request import Request

__all__ = ["Caller"]

AnyRequest = TypeVar("AnyRequest", bound=Request[Any])


class Caller(Generic[AnyRequest]):
    """Requests that one caller waits for together, of which a few at a time take part in the loop."""

    def __init__(
        self,
        submit: Callable[[AnyRequest], object],
        requests: Iterable[AnyRequest],
        *,
        most: int,
        listener: Callable[[], object] | None = None,
    ) -> None:
        """submit: called for each request that begins. most: of them at a time. listener: of each."""
        self.requests: list[AnyRequest] = []
        """Those that have begun and that are not over."""
        self._submit = submit
        self._caller = object()  # not `self`: requests that are dropped are free at once
        self._coming = iter(requests)
        self._more = True  # of these
        self._listener = listener
        self._most = most

    def left(self) -> bool:
        """Whether there is something to wait for; further requests begin where others are over."""
        for request in self.requests:
            if request.over:
                self.requests = [request for request in self.requests if not request.over]
                break
        if len(self.requests) < self._most and self._more:
            for request in islice(self._coming, self._most - len(self.requests)):
                request.listener, request.caller = self._listener, self._caller
                self.requests.append(request)
                self._submit(request)
            self._more = len(self.requests) == self._most
        return bool(self.requests)

    def ready(self) -> Iterator[AnyRequest]:
        """Those from which something can be taken now."""
        for request in self.requests:
            if not request.cancelled and (request.made or request.error is not None):
                yield request

"""Metrics: what the server counts, in a registry of its own, in Prometheus's format."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from mistral_portable.engine import Generation, Model
from mistral_portable.server.queue import Queue

__all__ = ["Metrics"]

_PREFIX = "mistral_portable_"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one server."""

    def __init__(self, model: Model, queue: Queue) -> None:
        self.registry = CollectorRegistry()

    @contextmanager
    def answering(self, job: Any) -> Iterator[Callable[[Generation], None]]:
        """Count a job; the block calls the function for each answer that is complete."""
        yield lambda generation: None

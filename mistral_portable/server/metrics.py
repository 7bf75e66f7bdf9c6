"""Metrics: what a server counts, in a registry of its own, in Prometheus's text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mistral_portable.engine import Generation, Model
from mistral_portable.server.logs import RECORD
from mistral_portable.server.queue import Queue

__all__ = ["Metrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters of one server; each name begins with `mistral_portable_`."""

    def __init__(self, model: Model, queue: Queue) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests, by path and HTTP status.", "path", "status")
        self._seconds = self._histogram(
            "request_seconds", "From a request's head to the end of its response.", _SECONDS
        )
        self._prompts = self._counter("prompt_tokens", "Tokens of prompts of complete answers.")
        self._cached = self._counter("cached_tokens", "Tokens of prompts that were found in the cache.")
        self._answers = self._counter("answers", "Complete answers, by reason of their end.", "finish_reason")
        self._made = self._counter("answer_tokens", "Tokens of complete answers.")
        self._drafted = self._counter("drafted_tokens", "Tokens that steps of complete answers have tried.")
        self._accepted = self._counter("accepted_tokens", "Drafted tokens that were right.")
        self._first = self._histogram("first_token_seconds", "From the queue to the first token.", _SECONDS)
        self._each = self._histogram("token_seconds", "Between the tokens of an answer, on average.", _TOKEN_SECONDS)
        for name, text, value in (
            ("open_answers", "Answers that run or wait.", lambda: queue.open),
            ("queue_limit", "Answers that may run and wait.", lambda: queue.limit),
            ("lanes", "Answers that run at a time.", lambda: queue.lanes),
            ("lanes_in_use", "Lanes of the cache in use.", lambda: len(model.manager.lanes)),
            ("cache_bytes", "Keys and values in use or kept.", lambda: model.manager.bytes_in_use),
        ):
            self._gauge(name, text, value)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request whose response has ended. path: of its route."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.observe(seconds)

    def count_answer(self, generation: Generation) -> None:
        """Count a complete answer, here and in the log of the request that runs in this context."""
        timings, made = generation.timings, len(generation.tokens)
        self._prompts.inc(timings.prefill_tokens)
        self._cached.inc(timings.cached_tokens)
        self._answers.labels(generation.finish_reason).inc()
        self._made.inc(made)
        self._drafted.inc(timings.drafted_tokens)
        self._accepted.inc(timings.accepted_tokens)
        self._first.observe(timings.prefill_s)
        if timings.decode_tokens:
            self._each.observe(timings.decode_s / timings.decode_tokens)
        record = RECORD.get()
        if record is not None:
            counts = {"prompt": timings.prefill_tokens, "cached": timings.cached_tokens, "answer": made}
            for name, count in counts.items():
                record[f"{name}_tokens"] = record.get(f"{name}_tokens", 0) + count
            record.setdefault("first_token_ms", round(timings.prefill_s * 1000, 1))

    def text(self) -> bytes:
        """All of them, in Prometheus's text format, version 0.0.4."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"mistral_portable_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"mistral_portable_{name}", text, buckets=buckets, registry=self._registry)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(f"mistral_portable_{name}", text, registry=self._registry).set_function(value)

"""This library's server as a process, and a client that streams its answers. Not a command; see bench_serving.py."""

import sys
from collections.abc import Callable, Sequence

from tools.bench_engines import Setup
from tools.bench_http import ServerProcess, events, free_port
from tools.bench_play import Reply

__all__ = ["OurServer"]


class OurServer(ServerProcess):
    """`python -m mistral_portable serve` for one model."""

    def __init__(self, setup: Setup) -> None:
        port = free_port()
        options = {"--port": port, "--backend": setup.backend, "--parallel": setup.lanes}
        if setup.threads is not None:
            options["--threads"] = setup.threads
        words = [str(word) for option in options.items() for word in option]
        super().__init__([sys.executable, "-m", "mistral_portable", "serve", setup.model, *words], port)

    async def ask(self, prompt: Sequence[int], answer: int, made: Callable[[int], None]) -> Reply:
        """Continue a prompt: an `Ask` of tools/bench_play.py.

        A token counts when the event with its text comes; what follows the last text, with the end of the answer. The
        reply tells no ids, so that nothing can continue it.
        """
        body = {
            "model": "any",
            "prompt": list(prompt),
            "max_tokens": answer,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        count, cached = 0, None
        async for event in events(self.port, "/v1/completions", body):
            for choice in event["choices"]:
                count = answer if choice["finish_reason"] else min(count + 1, answer)
                made(count)
            if not event["choices"]:
                cached = event["usage"]["prompt_tokens_details"]["cached_tokens"]
        if cached is None:
            raise RuntimeError(f"the server ended a stream before its answer: {count} of {answer} tokens")
        return Reply([], cached)

"""llama.cpp's server as a process, and a client that streams its answers. Not a command; see tools/bench_serving.py."""

import subprocess
from collections.abc import Callable, Sequence

from tools.bench_http import ServerProcess, events, free_port
from tools.bench_play import Reply

__all__ = ["LlamaServer", "complete", "llama_server_version"]


class LlamaServer(ServerProcess):
    """A llama-server with its defaults for one model."""

    def __init__(self, program: str, model: str, *, slots: int, room: int, threads: int) -> None:
        """slots: sequences that run at a time, each of up to `room` tokens."""
        port = free_port()
        options = {
            "--model": model,
            "--host": "127.0.0.1",
            "--port": port,
            "--parallel": slots,
            "--ctx-size": slots * (room + 256 & -256),  # each slot has its part; a slot is never filled to its end
            "--threads": threads,
        }
        super().__init__([program, *(str(word) for option in options.items() for word in option)], port)

    async def ask(self, prompt: Sequence[int], answer: int, made: Callable[[int], None]) -> Reply:
        """Continue a prompt: an `Ask` of tools/bench_play.py."""
        return await complete(self.port, prompt, answer, made)


def llama_server_version(program: str) -> str:
    """The version that a llama-server tells, such as "7213 (b61de2b)". Raises RuntimeError if it tells none."""
    told = subprocess.run([program, "--version"], capture_output=True, text=True)
    for line in (told.stderr + told.stdout).splitlines():
        if line.startswith("version: "):
            return line.removeprefix("version: ")
    raise RuntimeError(f"{program} --version tells no version: is it a llama-server?")


async def complete(port: int, prompt: Sequence[int], answer: int, made: Callable[[int], None]) -> Reply:
    """Let the llama-server at a port of this machine continue a prompt: an `Ask` of tools/bench_play.py.

    A token that ends within a character is held back by the server: it counts when the next event comes, and the
    reply's ids end before it. Raises RuntimeError if the server refuses or ends early.
    """
    body = {
        "prompt": list(prompt),
        "n_predict": answer,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "cache_prompt": True,
    }
    tokens: list[int] = []
    async for event in events(port, "/completion", body):
        count = event["tokens_predicted"]
        made(count)
        if event["stop"]:
            return Reply(tokens, event["timings"]["cache_n"])
        if len(tokens) == count - 1:
            tokens += event["tokens"]
    raise RuntimeError(f"llama-server ended a stream before its answer: {count} of {answer} tokens")

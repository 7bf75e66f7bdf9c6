"""A long run of a server under clients of all kinds, which fails if memory grows to the end or anything is left.

    python -m tools.soak --minutes 20

Clients ask for chats, texts, schemas and embeddings, save and restore sessions, send nonsense and half of requests, and
leave amid their answers. Every ten seconds a line says what the server's process holds. Memory must not grow by more
than --most-growth MiB from the third quarter of the time to the last one, in medians; no status is 500; and at the end
no lane is taken, nothing waits, the log has no traceback, and SIGTERM ends the server with status 0.
"""

import argparse
import json
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tools.bench_http import free_port
from tools.positive import positive

WORDS = ["the", "red", "ball", "sun", "day", "dog", "tree", "house", "river", "little", "big", "ran", "saw", "happy"]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
NONSENSE: list[Any] = [
    None,
    [],
    "x",
    {"prompt": {}},
    {"prompt": "a", "n": -1},
    {"messages": [{"role": 5}]},
    {"input": 5},
]
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/tokenize"]


@dataclass
class Soak:
    """The server's port, the clients' random numbers, and what they saw."""

    port: int
    end: float
    statuses: Counter[int] = field(default_factory=Counter)

    def client(self, seed: int) -> None:
        """Do one thing after another until the time is over."""
        draw = random.Random(seed)
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=600) as http:
            while time.monotonic() < self.end:
                draw.choice(DEEDS)(self, http, draw)

    def post(self, http: httpx.Client, path: str, body: Any) -> None:
        """Ask for something and count how that ended."""
        self.statuses[http.post(path, json=body).status_code] += 1


def text(draw: random.Random, most: int) -> str:
    """A text that nobody has sent before, of at most so many words."""
    return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))


def ask_chat(soak: Soak, http: httpx.Client, draw: random.Random) -> None:
    """A chat, whole or streamed."""
    stream, tokens = draw.random() < 0.5, draw.randint(1, 100)
    messages = [{"role": "user", "content": text(draw, 200)}]
    soak.post(http, "/v1/chat/completions", {"messages": messages, "stream": stream, "max_tokens": tokens})


def ask_texts(soak: Soak, http: httpx.Client, draw: random.Random) -> None:
    """Several answers to several texts."""
    prompts = [text(draw, 50) for _ in range(draw.randint(1, 3))]
    soak.post(http, "/v1/completions", {"prompt": prompts, "n": draw.randint(1, 3), "logprobs": 2})


def ask_schema(soak: Soak, http: httpx.Client, draw: random.Random) -> None:
    """An answer under a schema that is new, so that it is compiled."""
    schema = {**SCHEMA, "properties": {"a": {"enum": [draw.random(), 2]}}}
    body = {"model": "m", "messages": [{"role": "user", "content": text(draw, 20)}], "format": schema, "stream": False}
    soak.post(http, "/api/chat", body)


def embed(soak: Soak, http: httpx.Client, draw: random.Random) -> None:
    """Vectors of texts."""
    soak.post(http, "/v1/embeddings", {"input": [text(draw, 100) for _ in range(draw.randint(1, 8))]})


def keep(soak: Soak, http: httpx.Client, draw: random.Random) -> None:
    """Save, restore or delete one of a few sessions."""
    name = f"s{draw.randint(0, 9)}"
    deed = draw.choice(["save", "restore", ""])
    answer = http.post(f"/sessions/{name}/{deed}") if deed else http.delete(f"/sessions/{name}")
    soak.statuses[answer.status_code] += 1


def send_nonsense(soak: Soak, http: httpx.Client, draw: random.Random) -> None:
    """Send a body that is no request."""
    soak.post(http, draw.choice(PATHS), draw.choice(NONSENSE))


def leave(soak: Soak, http: httpx.Client, draw: random.Random) -> None:
    """Go away while queued, in the prompt or in decoding, as it comes."""
    body = json.dumps({"prompt": text(draw, 1000), "max_tokens": 1500, "ignore_eos": True, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", soak.port)) as connection:
        connection.sendall((head + body)[: draw.choice([10, len(head) + 10, len(head + body)])])
        time.sleep(draw.random() * 0.5)


def burst(soak: Soak, http: httpx.Client, draw: random.Random) -> None:
    """More answers at once than find room."""
    soak.post(http, "/v1/completions", {"prompt": [text(draw, 5) for _ in range(24)], "max_tokens": 5})


DEEDS: list[Callable[[Soak, httpx.Client, random.Random], None]] = [
    ask_chat,
    ask_texts,
    ask_schema,
    embed,
    keep,
    send_nonsense,
    leave,
    burst,
]


def resident(pid: int) -> float:
    """MiB of a process that are in memory (Linux)."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def metrics(port: int) -> dict[str, float]:
    """The gauges of the server: lanes_in_use, open_answers, cache_bytes."""
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=600).text.splitlines()
    values = (line.removeprefix("mistral_portable_").split() for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in values if name in ("lanes_in_use", "open_answers", "cache_bytes")}


def watch(soak: Soak, pid: int, every: float) -> list[float]:
    """Print a line every so many seconds until the time is over; return MiB in memory at each."""
    samples, begin = list[float](), time.monotonic()
    print("minute   RSS MiB   lanes   open   cache MiB   responses by status", flush=True)
    while time.monotonic() < soak.end:
        time.sleep(every)
        now = metrics(soak.port)
        samples.append(resident(pid))
        counts = " ".join(f"{status}:{count}" for status, count in sorted(soak.statuses.items()))
        minute = (time.monotonic() - begin) / 60
        line = f"{minute:6.1f} {samples[-1]:9.1f} {now['lanes_in_use']:7.0f} {now['open_answers']:6.0f}"
        print(f"{line} {now['cache_bytes'] / 2**20:11.1f}   {counts}", flush=True)
    return samples


def growth(samples: list[float]) -> float:
    """MiB by which the median of the last quarter is above that of the third."""
    quarter = len(samples) // 4
    return statistics.median(samples[-quarter:]) - statistics.median(samples[-2 * quarter : -quarter])


def idle(port: int, patience: float) -> bool:
    """Whether the server holds nothing for anybody, now or within so many seconds."""
    end = time.monotonic() + patience
    while (now := metrics(port))["lanes_in_use"] or now["open_answers"]:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def main() -> None:
    """Start a server, let clients at it, and say how it went: exit status 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=positive, default=12)
    parser.add_argument("--most-growth", type=float, default=10, metavar="MIB")
    parser.add_argument("--every", type=float, default=10, metavar="S", help="seconds between two lines")
    arguments = parser.parse_args()
    if 60 * arguments.minutes < 8 * arguments.every:
        parser.error("--minutes: too short to compare quarters: eight times --every are the least")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        port = free_port()
        options = ["--port", str(port), "--sessions-dir", folder, "--embeddings", "last", "--parallel", "4"]
        options += ["--max-queue", "20", "--cache-ram", "64"]
        command = [sys.executable, "-m", "mistral_portable", "serve", arguments.model, *options]
        with subprocess.Popen(command, stderr=log) as server:
            try:
                faults = soak_server(server, port, arguments)
            finally:
                server.send_signal(signal.SIGTERM)
                status = server.wait(120)
        log.seek(0)
        written = log.read()
    faults += [f"the server ended with status {status}"] if status else []
    faults += ["the log has a traceback:\n" + written[written.index("Traceback") :]] if "Traceback" in written else []
    print("\n".join(faults) or "all well")
    sys.exit(1 if faults else 0)


def soak_server(server: subprocess.Popen[bytes], port: int, arguments: argparse.Namespace) -> list[str]:
    """Run clients against a server that starts; return what was wrong."""
    for _ in range(600):
        try:
            httpx.get(f"http://127.0.0.1:{port}/ready").raise_for_status()
            break
        except httpx.HTTPError:
            time.sleep(0.1)
    soak = Soak(port, time.monotonic() + 60 * arguments.minutes)
    clients = [threading.Thread(target=soak.client, args=(seed,)) for seed in range(arguments.clients)]
    for client in clients:
        client.start()
    grown = growth(watch(soak, server.pid, arguments.every))
    for client in clients:
        client.join()
    print(f"{sum(soak.statuses.values())} responses; grown by {grown:.1f} MiB from the third quarter to the last")
    faults = [f"memory grows: {grown:.1f} MiB"] if grown > arguments.most_growth else []
    faults += [f"{soak.statuses[status]} times status {status}" for status in soak.statuses if status not in EXPECTED]
    return faults + ([] if idle(port, 60) else [f"not idle after a minute: {metrics(port)}"])


EXPECTED = (200, 400, 404, 503)

if __name__ == "__main__":
    main()

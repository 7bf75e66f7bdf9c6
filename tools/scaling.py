"""Simulate a batch in pieces on many servers, with the cost of its one writer as measured here.

    python -m tools.scaling [--requests 1000000] [--rate 100] [--tokens 200]

A server takes the next piece when it has room, two at a time, and makes `rate` tokens/s; answers have exponentially
distributed lengths. Every answer passes through the one command that writes them. Not simulated: Ray's own scheduling,
the start of servers, a network slower than what it is asked for (some kB/s for each server).
"""

import argparse
import heapq
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from mistral_portable.openai.answer_file import AnswerFile
from mistral_portable.scaling.pieces import piece_size
from tools.positive import positive


def writer_seconds(answers: int = 20_000) -> float:
    """Seconds that the command takes for an answer of 2 kB: it appends the line."""
    line = json.dumps({"id": "batch_req_0", "custom_id": "0", "text": "x" * 2000}).encode() + b"\n"
    with tempfile.TemporaryDirectory() as folder:
        file = AnswerFile(Path(folder) / "out.jsonl", set())
        begin = time.perf_counter()
        for _ in range(answers):
            file.add(line)
        file.close()
        return (time.perf_counter() - begin) / answers


def batch_seconds(servers: int, requests: int, rate: float, tokens: float, writing: float) -> float:
    """Seconds until the last answer is written; `writing` of them are one answer's at the writer."""
    rng = np.random.default_rng(0)
    size = piece_size(requests, servers, lanes=8)
    free = [0.0] * (2 * servers)  # when each place for a piece is free; both of a server share its rate
    pieces = []
    for begin in range(0, requests, size):
        count = min(size, requests - begin)
        made = heapq.heappop(free) + rng.exponential(tokens, count).sum() / (rate / 2)
        heapq.heappush(free, made)
        pieces.append((made, count))
    written = 0.0
    for made, count in sorted(pieces):
        written = max(written, made) + count * writing
    return written


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Simulate a batch on 1 to 10,000 servers.")
    parser.add_argument("--requests", type=positive, default=10**6)
    parser.add_argument("--rate", type=float, default=100.0, help="tokens/s of a server")
    parser.add_argument("--tokens", type=float, default=200.0, help="of an answer, on average")
    args = parser.parse_args()
    writing = writer_seconds()
    print(f"writer: {writing * 1e6:.0f} us for an answer, {1 / writing:,.0f} answers/s\n")
    print("| servers | tokens/s | hours | of N times one |\n|---|---|---|---|")
    for servers in (1, 10, 100, 1000, 10_000):
        seconds = batch_seconds(servers, args.requests, args.rate, args.tokens, writing)
        total = args.requests * args.tokens / seconds
        print(f"| {servers:,} | {total:,.0f} | {seconds / 3600:.2f} | {total / servers / args.rate:.3f} |")


if __name__ == "__main__":
    main()

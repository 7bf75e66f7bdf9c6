"""Stand in for llama-server: the few requests, options and events of it that the tools use.

An answer counts on from the prompt's last token, below 100. A multiple of 5 is held back, like a byte that ends within
a character. Of a prompt the longest beginning counts as cached that earlier ones and their answers had.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VOCAB = 100
BROKEN = 99
"""The last token of a prompt whose answer breaks off with an error."""


def install(folder: Path) -> str:
    """Write the program into a folder; its path."""
    path = folder / "llama-server"
    path.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
    path.chmod(0o755)
    return str(path)


class Server(ThreadingHTTPServer):
    """A server on a port; 0: any."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.lock = threading.Lock()
        self.seen: list[list[int]] = []
        self.bodies: list[dict[str, Any]] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._send(200 if self.path == "/health" else 404, {"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if not body["prompt"]:
            self._send(400, {"error": {"message": "the prompt is empty"}})
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for text in self._events(body):
            halves = text[: len(text) // 2], text[len(text) // 2 :]  # a chunk may end anywhere
            for half in halves:
                self.wfile.write(f"{len(half):x}\r\n".encode() + half + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _events(self, body: dict[str, Any]) -> Iterator[bytes]:
        prompt, count = body["prompt"], body["n_predict"]
        answer = [(prompt[-1] + number) % VOCAB for number in range(1, count + 1)]
        with self.server.lock:
            cached = max((_common(prompt, old) for old in self.server.seen), default=0)
            self.server.seen.append(prompt + answer)
        yield b":\n\n"
        for number, token in enumerate(answer, 1):
            time.sleep(0.002)
            if token % 5:
                yield _event({"tokens": [token], "tokens_predicted": number, "stop": False})
            if prompt[-1] == BROKEN:
                yield _event({"error": {"message": "no memory"}})
                return
        timings = {"cache_n": cached, "prompt_n": len(prompt) - cached}
        yield _event({"tokens": [], "tokens_predicted": count, "stop": True, "timings": timings})

    def _send(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def _event(value: object) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def _common(prompt: list[int], old: list[int]) -> int:
    pairs = enumerate(zip(prompt[:-1], old, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(prompt) - 1, len(old)))


if __name__ == "__main__":
    if "--version" in sys.argv:
        print("version: 1 (fake)", file=sys.stderr)
    elif "nothing.gguf" in sys.argv:
        sys.exit("loading\ncannot open nothing.gguf")
    else:
        Server(int(sys.argv[sys.argv.index("--port") + 1])).serve_forever()

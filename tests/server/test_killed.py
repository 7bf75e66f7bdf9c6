"""A server that is killed amid its work: the next one finds each session whole, the old one or the new one."""

import random
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from server.server_process import Process, started
from serving import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

SHORT, LONG = "The sun was high. " * 3, "The sun was high. " * 60
ENDLESS: dict[str, Any] = {"prompt": "Once", "ignore_eos": True, "max_tokens": 30000, "temperature": 0, "stream": True}


def connected(server: Process) -> httpx.Client:
    found = re.search(r"http://127\.0\.0\.1:\d+", "".join(server.lines))
    assert found is not None
    return httpx.Client(base_url=found[0], timeout=PATIENCE)


def save_and_decode(server: Process, http: httpx.Client, tokens: dict[str, int]) -> None:
    """Kill the server while one client has it decode and two others save two texts under one name, again and again."""
    saved = threading.Semaphore(0)

    def save(text: str) -> None:
        try:
            while http.post("/sessions/both/save", json={"prompt": text}).json()["tokens"] == tokens[text]:
                saved.release()
        except httpx.TransportError:
            pass

    savers = [threading.Thread(target=save, args=(text,)) for text in tokens]
    with http.stream("POST", "/v1/completions", json=ENDLESS) as answer:
        next(answer.iter_lines())
        for saver in savers:
            saver.start()
        for _ in range(random.randint(1, 20)):
            assert saved.acquire(timeout=PATIENCE)
        time.sleep(random.random() / 100)  # so that it hits any place of a save
        server.process.kill()
        for saver in savers:
            saver.join(PATIENCE)
            assert not saver.is_alive()


def test_sessions_are_whole_after_a_kill(tmp_path: Path) -> None:
    options = ["--port", "0", "--sessions-dir", str(tmp_path)]
    tokens = dict[str, int]()
    for number in range(4):
        with started(*options, ready="^try: curl") as server, connected(server) as http:
            if number:
                [session] = http.get("/sessions").json()["sessions"]
                assert session["name"] == "both"
                restored = http.post("/sessions/both/restore").raise_for_status().json()["tokens"]
                assert restored in tokens.values()
                text = next(text for text, count in tokens.items() if count == restored)
                usage = http.post("/v1/completions", json={"prompt": text, "max_tokens": 1}).json()["usage"]
                assert usage["prompt_tokens_details"]["cached_tokens"] == restored - 1
            for text in (SHORT, LONG):
                body = {"prompt": text, "max_tokens": 1}
                tokens[text] = http.post("/v1/completions", json=body).json()["usage"]["prompt_tokens"]
            save_and_decode(server, http, tokens)
    left = {file.name for file in tmp_path.iterdir()} - {"both.session"}
    assert all(re.fullmatch(r"\.both\.session\.\w+\.partial|\.tmp\w+", name) for name in left)  # .tmp: safetensors'

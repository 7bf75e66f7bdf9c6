"""`serve` as operators start and end it: a process, its address, its log, and SIGTERM."""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli.processes import invoke
from server.server_process import started
from serving import PATIENCE, serving

import mistral_portable as mp
from mistral_portable.errors import InputError
from mistral_portable.server.lifecycle import listen_tcp, listen_unix

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

ENDLESS: dict[str, Any] = {"prompt": "Once", "ignore_eos": True, "max_tokens": 30000, "temperature": 0, "stream": True}


def test_sigterm_lets_running_answers_end(model: mp.Model) -> None:
    """Also: the line to be pasted works, and says what it takes."""
    with started("--port", "0", "--api-key", "secret", "--alias", "mine", ready="^try: curl") as server:
        found = re.search(r"serving mine \(numba\) on (http://127\.0\.0\.1:\d+)", "".join(server.lines))
        assert found is not None
        url = found[1]
        program, address, *arguments = shlex.split(server.lines[-1].removeprefix("try: "))
        headers = dict(text.split(": ") for text in arguments[1:-2:2])
        assert (program, address, headers["Authorization"]) == ("curl", f"{url}/v1/chat/completions", "Bearer YOUR_KEY")
        with httpx.Client(base_url=url, headers={"X-Api-Key": "secret"}, timeout=PATIENCE) as http:
            assert http.post(address, content=arguments[-1], headers=headers).status_code == 200
            body = ENDLESS | {"max_tokens": 1500}
            with http.stream("POST", "/v1/completions", json=body) as answer:
                lines = answer.iter_lines()
                read = [next(lines)]
                server.process.send_signal(signal.SIGTERM)
                read += list(lines)
        status, log = server.end()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
    events = [line.removeprefix("data: ") for line in read if line]
    assert events[-1] == "[DONE]"
    texts = [choice["text"] for event in map(json.loads, events[:-1]) for choice in event["choices"]]
    assert "".join(texts) == model.generate("Once", ignore_eos=True, max_tokens=1500, temperature=0).text
    assert status == 0
    assert "secret" not in log
    assert "Traceback" not in log
    assert "answer_tokens=1500" in log


def test_sigterm_ends_answers_at_the_deadline(tmp_path: Path) -> None:
    """Also: a unix socket, and a log of JSON."""
    path = tmp_path / "socket"
    with started("--uds", str(path), "--deadline", "0.1", "--log", "json", ready="serving tiny") as server:
        assert path.stat().st_mode & 0o777 == 0o600
        with (
            httpx.Client(base_url="http://localhost", transport=httpx.HTTPTransport(uds=str(path))) as http,
            http.stream("POST", "/v1/completions", json=ENDLESS, timeout=PATIENCE) as answer,
        ):
            lines = answer.iter_lines()
            read = [next(lines)]
            server.process.send_signal(signal.SIGTERM)
            read += list(lines)
        status, log = server.end()
    last = json.loads([line for line in read if line][-1].removeprefix("data: "))
    assert (last["error"]["code"], "shutting down" in last["error"]["message"]) == (503, True)
    assert status == 0
    entries = [json.loads(line) for line in log.splitlines()]
    (request,) = [entry for entry in entries if "request_id" in entry]
    assert (request["path"], request["status"], request["level"]) == ("/v1/completions", 200, "info")
    assert not any("traceback" in entry for entry in entries)


def test_connections_send_at_once() -> None:
    """Else the second packet of a response waits for the client's acknowledgement of the first, for 40 ms."""
    accepted = list[int]()

    async def run() -> None:
        seen = asyncio.Event()

        async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()
            seen.set()

        listener = listen_tcp("127.0.0.1", 0)
        async with await asyncio.start_server(take, sock=listener):
            with socket.create_connection(listener.getsockname()):
                await seen.wait()

    asyncio.run(run())
    (without_delay,) = accepted
    assert without_delay


def test_a_socket_that_nobody_listens_to_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    for _ in range(2):
        with listen_unix(path) as listener:
            listener.listen()
            with pytest.raises(InputError, match=f"--uds {path}: is taken"):
                listen_unix(path)
        assert path.exists()


def test_an_address_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = invoke("serve", "--port", str(port))
    assert result.status == 2
    assert re.search(rf"--port {port}: .*: choose another port", result.err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "198.51.100.1"], "--host 198.51.100.1"),
        (["--host", "no host"], "--host no host: no address"),
        (["--uds", "."], "--uds .: is taken"),
        (["--uds", "none/socket"], "--uds none/socket"),
        (["--sessions-dir", "none"], "--sessions-dir none"),
        (["--api-key", ""], "API key 1 of 1"),
        (["--api-key-file", "none"], "--api-key-file none"),
        (["--sampling", "model"], "no generation_config.json of the model says how to draw"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_served_is_one_line(arguments: list[str], words: str) -> None:
    result = invoke("serve", "--port", "0", *arguments)
    assert result.status == 2
    assert words in result.err
    assert result.err.count("\n") == 1


def test_requests_that_come_while_it_ends_are_refused(model: mp.Model) -> None:
    with serving(model, deadline=0.1) as running, running.client() as http, running.ask(ENDLESS) as connection:
        assert connection.recv(12) == b"HTTP/1.1 200"
        running.service.end()
        for path in ("/v1/completions", "/v1/chat/completions"):
            answer = http.post(path, json={"prompt": "a", "messages": [{"role": "user", "content": "a"}]})
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "unavailable_error")
        assert http.get("/ready").status_code == 503
        assert http.get("/health").status_code == 200


def test_the_core_imports_nothing_of_the_server() -> None:
    program = """
import sys, mistral_portable, mistral_portable.cli
print(*[name for name in ("starlette", "uvicorn", "prometheus_client", "llguidance", "jinja2") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == []

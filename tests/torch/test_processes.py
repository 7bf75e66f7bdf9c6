"""Two processes that share a model: commands do what they do in one, whatever becomes of a process. Each start takes
seconds, so one is for several checks."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import mistral_portable as mp
from mistral_portable.openai.batch import run_batch

OURS = ["-m", "mistral_portable"]
SHARED = ["--backend", "torch", "--tensor-parallel", "2", "--device", "cpu", "--dtype", "float32"]
PATIENCE = 200  # seconds; the machines that run this are shared
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def alone() -> Iterator[mp.Model]:
    """The model in one process."""
    with mp.load("tiny", backend="torch", device="cpu", dtype="float32") as model:
        yield model


@contextmanager
def two_processes(*arguments: str, stdin: int = subprocess.DEVNULL) -> Iterator[list[subprocess.Popen[str]]]:
    """A command in two processes, as torchrun starts them, with the same stdin."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    found = list[subprocess.Popen[str]]()
    try:
        for rank in range(2):
            places = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            found.append(
                subprocess.Popen(
                    [sys.executable, *OURS, *arguments, *SHARED],
                    env={**os.environ, **places, "OMP_NUM_THREADS": "1"},
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield found
    finally:
        for process in found:
            process.kill()
            process.communicate()


def test_run_with_drafts_and_a_session(alone: mp.Model, tmp_path: Path) -> None:
    """Only the first process writes; its session is the one that one process writes, and reads."""
    session = tmp_path / "session"
    text = ["Once upon a time", "--temperature", "0", "--max-tokens", "70", "--json"]
    command = [*TORCHRUN, *OURS, "run", *text, *SHARED, "--draft", "suffix", "--session", str(session)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    expected = alone.generate("Once upon a time", max_tokens=70, temperature=0)
    assert json.loads(done.stdout)["tokens"] == list(expected.tokens)
    with mp.load("tiny", backend="torch", device="cpu", dtype="float32") as model:
        known = model.load_session(session)
        more = model.generate(
            [*alone.tokenizer.encode("Once upon a time"), *expected.tokens], max_tokens=9, temperature=0
        )
        assert more.timings.cached_tokens == known > len(expected.tokens)
    assert more.tokens == alone.generate("Once upon a time", max_tokens=79, temperature=0).tokens[70:]


def test_a_chat_and_the_end_of_a_process(alone: mp.Model) -> None:
    """Both processes have the same stdin, which the first one alone reads. When the other one is killed, it says so."""
    messages, answers = list[dict[str, str]](), []
    for text in ("Hello", "And then?"):
        messages.append({"role": "user", "content": text})
        answers.append(alone.chat(messages, max_tokens=8, temperature=0).text)
        messages.append({"role": "assistant", "content": answers[-1]})
    reading, writing = os.pipe()
    with two_processes("chat", "--max-tokens", "8", "--temperature", "0", stdin=reading) as (first, second):
        os.close(reading)
        with os.fdopen(writing, "w") as lines:
            lines.write("Hello\nAnd then?\n")
            lines.flush()
            assert first.stdout is not None
            said = "".join(f"{answer}\n" for answer in answers)
            assert first.stdout.read(len(said)) == said
            second.kill()
            lines.write("Anybody there?\n")
        out, err = first.communicate(timeout=PATIENCE)
        assert (first.returncode, out) == (1, "")
        assert ours(err) == (
            "error: a process that shares this model has ended, and with it its part: start all of them again\n"
        )


def ours(text: str) -> str:
    """Lines of a log, without the log of torch's C++, "[W1129 ...", such as of a socket that it tries again."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("["))


def test_a_batch(alone: mp.Model, tmp_path: Path) -> None:
    bodies: dict[str, tuple[str, dict[str, Any]]] = {
        "story": ("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 30, "temperature": 0}),
        "drawn": ("/v1/completions", {"prompt": "Tom had", "max_tokens": 30, "temperature": 0.8, "seed": 5}),
        "chat": (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9, "temperature": 0},
        ),
        "wrong": ("/v1/completions", {"prompt": "x", "temperature": -1}),
    }
    requests, answers, expected = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "alone.jsonl"
    requests.write_text(
        "".join(
            json.dumps({"custom_id": name, "url": url, "body": body}) + "\n" for name, (url, body) in bodies.items()
        )
    )
    run_batch(alone, requests, expected)
    with two_processes("batch", str(requests), str(answers)) as (first, second):
        out, err = first.communicate(timeout=PATIENCE)
        assert (first.returncode, out, ours(err)) == (0, "", f"3 answered, 1 failed: {answers}\n")
        out, err = second.communicate(timeout=PATIENCE)
        assert (second.returncode, out, ours(err)) == (0, "", "")
    assert texts(answers) == texts(expected)


def texts(path: Path) -> dict[str, str]:
    """The text of each answer of a batch, or its error."""
    found = {}
    for line in path.read_text().splitlines():
        answer = json.loads(line)
        body = answer["response"]["body"]
        found[answer["custom_id"]] = json.dumps(body.get("choices", body))
    return found


def test_a_server_and_ctrl_c(alone: mp.Model) -> None:
    """Clients at the same time, and some that leave; then Ctrl-C amid an answer ends all processes."""
    options = ["--port", "0", "--parallel", "2", "--deadline", "1"]
    server = subprocess.Popen(
        [*TORCHRUN, *OURS, "serve", *options, *SHARED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        url = None
        while url is None:
            line = server.stderr.readline()
            assert line, "it has ended"
            url = re.search(r"serving tiny \(torch\) on (\S+)", line)
        with httpx.Client(base_url=url[1], timeout=PATIENCE) as client:
            endless = {"prompt": "Once", "ignore_eos": True, "max_tokens": 2000, "temperature": 0, "stream": True}
            for _ in range(3):  # more than there are lanes
                with client.stream("POST", "/v1/completions", json=endless) as answer:
                    next(answer.iter_lines())
            prompts = ["Once upon a time", "Tom had a red ball"]
            with ThreadPoolExecutor() as threads:
                found = list(threads.map(lambda prompt: streamed(client, prompt), prompts))
            assert found == [alone.generate(prompt, max_tokens=40, temperature=0).text for prompt in prompts]
            with client.stream("POST", "/v1/completions", json=endless) as answer:
                next(answer.iter_lines())
                server.send_signal(signal.SIGINT)
                out, err = server.communicate(timeout=PATIENCE)  # until no process holds the pipes
    finally:
        server.terminate()  # torchrun ends the others
        server.communicate(timeout=PATIENCE)
    assert out == ""
    assert "serving" not in err
    assert "Unable to shutdown" not in err, "torchrun had to kill"


def streamed(client: httpx.Client, prompt: str) -> str:
    """A text, piece by piece."""
    body = {"prompt": prompt, "max_tokens": 40, "temperature": 0, "stream": True}
    pieces = []
    with client.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                pieces += [choice["text"] for choice in json.loads(line[len("data: ") :])["choices"]]
    return "".join(pieces)

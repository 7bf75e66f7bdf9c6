"""On Ray: batches with the same answers as without it, none lost and none twice; a service whose replicas end alone."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli.processes import COMMAND

import mistral_portable as mp
from mistral_portable.errors import BackendError
from mistral_portable.openai import BatchResult, run_batch

pytest.importorskip("ray", reason="Ray comes with the extra ray")
pytestmark = pytest.mark.usefixtures("alone")

PATIENCE = 240  # seconds: Ray starts five processes, beside all other tests


def write(path: Path, count: int, **body: Any) -> Path:
    lines = []
    for i in range(count):
        prompt = f"Once upon a time there was a {('girl', 'boy', 'dog')[i % 3]} who had {i} balls."
        own = {"prompt": prompt, "seed": i, "temperature": i % 2, **body}
        lines.append({"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": own})
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, which ends with the block."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()


def read(paths: list[Path]) -> dict[str, Any]:
    """Choices by custom_id, each of which is there once."""
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    found = {line["custom_id"]: line["response"]["body"]["choices"] for line in lines}
    assert len(found) == len(lines)
    return found


def without_ray(source: Path) -> dict[str, Any]:
    target = source.with_suffix(".alone.jsonl")
    with mp.load("tiny", backend="numba") as model:
        run_batch(model, source, target)
    return read([target])


def processes(title: bytes) -> list[int]:
    """Process ids of Ray's workers whose title has these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if title in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds Ray's workers in /proc")
def test_a_worker_is_killed(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", 300, max_tokens=60, ignore_eos=True), tmp_path / "out.jsonl"
    command = [*COMMAND, "batch", str(source), str(target), "--backend", "numba", "--ray", "local", "--replicas", "2"]
    before, begun = set(processes(b"ray::MapWorker")), time.monotonic()
    with started(command) as process:
        while not target.exists() or target.read_bytes().count(b"\n") < 30:
            assert process.poll() is None
            assert time.monotonic() < begun + PATIENCE
            time.sleep(0.02)
        os.kill(next(pid for pid in processes(b"ray::MapWorker") if pid not in before), signal.SIGKILL)
        _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, log
    assert "300 answered, 0 failed" in log
    assert read([target]) == without_ray(source)


def test_it_goes_on_and_says_what_is_wrong(tmp_path: Path) -> None:
    from mistral_portable.scaling.batches import run_ray_batch

    source, target = write(tmp_path / "in.jsonl", 24), tmp_path / "out"
    expected = without_ray(source)
    target.mkdir()
    lines = source.with_suffix(".alone.jsonl").read_text().splitlines(keepends=True)
    (target / "answers-0.jsonl").write_text("".join(lines[:10]))
    options = {"model": "tiny", "backend": "numba", "max_lanes": 8}
    seen: list[tuple[str, int, int]] = []

    def run(target: Path) -> BatchResult:
        return run_ray_batch(
            str(source), str(target), options, address="local", replicas=2, progress=lambda *what: seen.append(what)
        )

    result = run(target)
    assert (result.answered, result.failed, result.before) == (14, 0, 10)
    assert seen[-1] == ("requests", 24, 24)
    assert read(list(target.glob("*.jsonl"))) == expected

    options["model"] = str(tmp_path / "no-model.gguf")
    with pytest.raises(BackendError, match=r"a replica on .*no-model\.gguf"):
        run(tmp_path / "other.jsonl")


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds Ray's workers in /proc")
def test_a_service(tmp_path: Path) -> None:
    """A replica is killed while eight clients read: its streams end with an error, the others in full. A client that
    leaves gives its lane back. SIGTERM ends all."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    command = [
        *COMMAND,
        "serve",
        "tiny",
        "--backend",
        "numba",
        "--ray",
        "local",
        "--replicas",
        "2",
        "--port",
        str(port),
    ]
    before = set(processes(b"ServeReplica:mistral-portable:model"))
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)
    body = {"prompt": "Once", "ignore_eos": True, "stream": True, "max_tokens": 1500}
    with client, started(command) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        while not lines[-1].startswith("try: curl"):
            assert lines[-1], lines
            lines.append(process.stderr.readline())
        with mp.load("tiny", backend="numba") as model:
            text = model.generate("Once", max_tokens=9, temperature=0).text
        answer = client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 9, "temperature": 0}).json()
        assert answer["choices"][0]["text"] == text
        assert client.post("/v1/completions", json={"prompt": 5}).status_code == 400

        with client.stream("POST", "/v1/completions", json=body) as stream:
            next(stream.iter_lines())
        while any("lanes_in_use 0.0" not in client.get("/metrics").text for _ in range(8)):
            time.sleep(0.1)

        ends: list[str] = []

        def read_stream(seed: int) -> None:
            with client.stream("POST", "/v1/completions", json={**body, "prompt": f"{seed} times"}) as stream:
                assert stream.status_code == 200
                began.release()
                ends.append([line for line in stream.iter_lines() if line][-1])

        began = threading.Semaphore(0)
        clients = [threading.Thread(target=read_stream, args=(seed,)) for seed in range(8)]
        for one in clients:
            one.start()
        for _ in clients:
            assert began.acquire(timeout=PATIENCE)
        killed = next(pid for pid in processes(b"ServeReplica:mistral-portable:model") if pid not in before)
        os.kill(killed, signal.SIGKILL)
        for one in clients:
            one.join(PATIENCE)
        assert len(ends) == 8
        failed = [end for end in ends if end != "data: [DONE]"]
        assert 0 < len(failed) < 8
        assert all(json.loads(end.removeprefix("data: "))["error"]["code"] == 503 for end in failed)
        answer = client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 9, "temperature": 0})
        assert answer.status_code == 200

        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, log

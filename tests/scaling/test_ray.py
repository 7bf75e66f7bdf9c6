"""Batches on Ray: the same answers as without, none lost and none twice, also when a worker is killed."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.processes import COMMAND
from filelock import FileLock

import mistral_portable as mp
from mistral_portable.errors import BackendError
from mistral_portable.openai import run_batch

pytest.importorskip("ray", reason="Ray comes with the extra ray")

PATIENCE = 240  # seconds: Ray starts five processes, beside all other tests


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Each Ray needs half a dozen processes: one at a time, whatever process of pytest asks for it."""
    with FileLock(Path(tempfile.gettempdir()) / "mistral-portable-tests-ray.lock", timeout=2 * PATIENCE):
        yield


def write(path: Path, count: int, **body: Any) -> Path:
    lines = []
    for i in range(count):
        prompt = f"Once upon a time there was a {('girl', 'boy', 'dog')[i % 3]} who had {i} balls."
        own = {"prompt": prompt, "seed": i, "temperature": i % 2, **body}
        lines.append({"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": own})
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


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


def replicas() -> list[int]:
    """Process ids of the replicas of this user that have a model."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::MapWorker" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds Ray's workers in /proc")
def test_a_worker_is_killed(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", 300, max_tokens=60, ignore_eos=True), tmp_path / "out.jsonl"
    command = [*COMMAND, "batch", str(source), str(target), "--backend", "numba", "--ray", "local", "--replicas", "2"]
    before = set(replicas())
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not target.exists() or target.read_bytes().count(b"\n") < 30:
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(next(pid for pid in replicas() if pid not in before), signal.SIGKILL)
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
    places = {"source": str(source), "target": str(target), "address": "local", "replicas": 2}
    result = run_ray_batch(**places, options=options, progress=lambda *what: seen.append(what))
    assert (result.answered, result.failed, result.before) == (14, 0, 10)
    assert seen[-1] == ("requests", 24, 24)
    assert read(list(target.glob("*.jsonl"))) == expected

    places["target"] = str(tmp_path / "other.jsonl")
    options["model"] = str(tmp_path / "no-model.gguf")
    with pytest.raises(BackendError, match=r"a replica on .*no-model\.gguf"):
        run_ray_batch(**places, options=options, progress=lambda *what: None)

"""Batches: every request is answered once, as it would be alone, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mistral_portable as mp
from mistral_portable.errors import InputError, MistralPortableError
from mistral_portable.openai import run_batch

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def model() -> Iterator[mp.Model]:
    with mp.load("tiny", backend="numba", max_lanes=3) as model:
        yield model


def line(custom_id: Any, body: Any, url: str = TEXT) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    return path


def read(path: Path) -> dict[str, Any]:
    lines = [json.loads(one) for one in path.read_text().splitlines()]
    assert len({one["custom_id"] for one in lines}) == len(lines)
    return {one["custom_id"]: one["response"] for one in lines}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def test_answers_are_those_of_each_request_alone(model: mp.Model, files: tuple[Path, Path]) -> None:
    source, target = files
    prompts = ["Once upon a time", "Once", "One day", "Tom has a ball.", "Once upon a time, there"]
    lines = [line(f"text {i}", {"prompt": prompt, "seed": i, "n": 2}) for i, prompt in enumerate(prompts)]
    messages = [{"role": "user", "content": "Tom has a red ball. What color is the ball?"}]
    lines.append(line("chat", {"messages": messages, "temperature": 0, "logprobs": True, "top_logprobs": 2}, CHAT))
    lines.append(line("ids", {"prompt": [[1, 400], [1]], "temperature": 0, "max_tokens": 3, "logprobs": 1}))
    seen: list[tuple[str, int, int]] = []
    result = run_batch(model, write(source, lines), target, progress=lambda *what: seen.append(what))
    assert (result.answered, result.failed, result.before) == (7, 0, 0)
    assert seen[-1] == ("requests", 7, 7)
    found = read(target)
    for i, prompt in enumerate(prompts):
        body = found[f"text {i}"]["body"]
        alone = [model.generate(prompt, seed=i + k, temperature=1, max_tokens=16) for k in range(2)]
        assert [choice["text"] for choice in body["choices"]] == [one.text for one in alone]
        assert [choice["finish_reason"] for choice in body["choices"]] == [one.finish_reason for one in alone]
        assert body["usage"]["prompt_tokens"] == len(model.tokenizer.encode(prompt))
        assert 0 <= body["usage"]["prompt_tokens_details"]["cached_tokens"] < body["usage"]["prompt_tokens"]
        assert body["usage"]["completion_tokens"] == sum(len(one.tokens) for one in alone)
    answer = model.chat(messages, temperature=0, max_tokens=None, logprobs=2)
    (choice,) = found["chat"]["body"]["choices"]
    assert choice["message"] == {"role": "assistant", "content": answer.text, "refusal": None}
    assert answer.logprobs is not None
    assert [one["logprob"] for one in choice["logprobs"]["content"]] == [one.logprob for one in answer.logprobs]
    assert "".join(one["token"] for one in choice["logprobs"]["content"]).strip() == answer.text.strip()
    assert [len(c["logprobs"]["tokens"]) for c in found["ids"]["body"]["choices"]] == [3, 3]
    assert model.manager.lanes == ()


def test_errors_are_lines_of_their_own(model: mp.Model, files: tuple[Path, Path]) -> None:
    source, target = files
    bad = {
        "type": line("type", {"prompt": 5}),
        "value": line("value", {"prompt": "a", "top_p": 7}),
        "one prompt of two": line("one prompt of two", {"prompt": ["a", ""]}),
        "url": line("url", {"prompt": "a"}, "/v1/embeddings"),
        "role": line("role", {"messages": [{"role": "king", "content": "x"}]}, CHAT),
        "long": line("long", {"prompt": [5] * 40000}),
        "stream": line("stream", {"prompt": "a", "stream": True}),
        "effort": line("effort", {"messages": [{"role": "user", "content": "a"}], "reasoning_effort": "high"}, CHAT),
    }
    lines = [line("good", {"prompt": "Once"}), *bad.values(), line("good, too", {"prompt": "One"})]
    result = run_batch(model, write(source, lines), target)
    assert (result.answered, result.failed) == (2, len(bad))
    found = read(target)
    for custom_id in bad:
        assert found[custom_id]["status_code"] == 400
        error = found[custom_id]["body"]["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"]
        assert "\n" not in error["message"]
    assert found["good"]["status_code"] == found["good, too"]["status_code"] == 200


def test_a_row_that_fails_is_its_request_s_error(
    model: mp.Model, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = files
    step = model.program.step

    def broken(plan: Any, inputs: Any) -> Any:
        outputs = step(plan, inputs)
        outputs["logits"][plan.tokens[plan.logit_rows] == 777] = float("nan")
        return outputs

    monkeypatch.setattr(model.program, "step", broken)
    # The last of b's 40 prompts have not begun when the first one fails.
    broken_first = line("b", {"prompt": [[777]] + [[5]] * 39, "max_tokens": 200, "ignore_eos": True})
    lines = [line("a", {"prompt": "Once"}), broken_first, line("c", {"prompt": "One"})]
    result = run_batch(model, write(source, lines), target)
    assert (result.answered, result.failed) == (2, 1)
    assert read(target)["b"]["status_code"] == 500
    assert model.manager.lanes == ()


def test_an_answer_that_could_not_be_read_again_is_an_error(
    model: mp.Model, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a batch goes on, whatever was asked."""
    source, target = files
    monkeypatch.setattr("mistral_portable.openai.batch_lines.LONGEST", 1500)  # bytes, in place of 64 MiB
    write(source, [line("many", {"prompt": "Once", "n": 9}), line("one", {"prompt": "Once", "max_tokens": 5})])
    result = run_batch(model, source, target)
    assert (result.answered, result.failed) == (1, 1)
    assert read(target)["many"]["status_code"] == 400
    assert "ask for fewer choices or log-probabilities" in read(target)["many"]["body"]["error"]["message"]
    result = run_batch(model, source, target)
    assert (result.answered, result.failed, result.before) == (0, 0, 2)


def test_it_goes_on_where_it_stopped(model: mp.Model, files: tuple[Path, Path]) -> None:
    source, target = files
    lines = [line(str(i), {"prompt": "Once", "seed": i}) for i in range(9)]
    run_batch(model, write(source, lines[:4]), target)
    whole = target.read_bytes()
    target.write_bytes(whole[:-20])  # the process died amid the fourth line
    result = run_batch(model, write(source, lines), target)
    assert (result.answered, result.before) == (6, 3)
    assert target.read_bytes().startswith(whole[: whole[:-1].rindex(b"\n") + 1])
    assert set(read(target)) == {str(i) for i in range(9)}
    assert run_batch(model, source, target).before == 9


def test_killed_at_any_moment_it_writes_no_line_twice_and_loses_none(files: tuple[Path, Path]) -> None:
    source, target = files
    write(
        source, [line(str(i), {"prompt": "Once", "seed": i, "max_tokens": 60, "ignore_eos": True}) for i in range(60)]
    )
    command = [sys.executable, "-m", "mistral_portable", "batch", str(source), str(target), "--backend", "numba"]
    for answers in (1, 20):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not target.exists() or target.read_bytes().count(b"\n") < answers:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "were there before" in done.stderr
    assert set(read(target)) == {str(i) for i in range(60)}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([{"url": TEXT, "body": {}}], "line 1: custom_id=None"),
        ([line("a" * 1001, {})], "line 1: custom_id='aaa.* of 1 to 1000 characters"),
        ([line("a", {}), line("a", {})], "line 2: custom_id 'a' is that of .*line 1, too"),
        ([line("a", 5)], "line 1: body=5"),
        ([line("a", {}, url=None)], "line 1: it needs a method POST and a url"),  # type: ignore[arg-type]
        ([[]], r"line 1: \[\] must be an object"),
    ],
)
def test_a_file_that_is_no_batch_is_refused_before_anything_runs(
    model: mp.Model, files: tuple[Path, Path], lines: list[Any], words: str
) -> None:
    source, target = files
    with pytest.raises(InputError, match=words):
        run_batch(model, write(source, lines), target)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"a diary", b"a diary\n", b'{"custom_id": "other"}\n', b'{"id": "batch_rex'])
def test_a_foreign_file_is_never_written_to(model: mp.Model, files: tuple[Path, Path], content: bytes) -> None:
    source, target = files
    write(source, [line("a", {"prompt": "Once"})])
    target.write_bytes(content)
    with pytest.raises(InputError, match=r"out\.jsonl line 1"):
        run_batch(model, source, target)
    assert target.read_bytes() == content


def test_files_that_cannot_be_used(model: mp.Model, files: tuple[Path, Path]) -> None:
    source, target = files
    with pytest.raises(InputError, match=r"in\.jsonl: cannot be read: No such file"):
        run_batch(model, source, target)
    write(source, [line("a", {"prompt": "Once"})])
    with pytest.raises(InputError, match="need a file of their own"):
        run_batch(model, source, source)
    with pytest.raises(InputError, match="no/out: cannot be written"):
        run_batch(model, source, target.parent / "no" / "out")
    source.write_bytes(b"\xff\n")
    with pytest.raises(InputError, match=r"in\.jsonl line 1: no JSON"):
        run_batch(model, source, target)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_answers_that_cannot_be_written_end_it(model: mp.Model, files: tuple[Path, Path]) -> None:
    source, _ = files
    write(source, [line("a", {"prompt": "Once"})])
    with pytest.raises(MistralPortableError, match="/dev/full: cannot be written: No space left on device"):
        run_batch(model, source, Path("/dev/full"))
    assert model.manager.lanes == ()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes(model: mp.Model, files: tuple[Path, Path]) -> None:
    """Answers go into one, and what it held before is not asked for; requests are read twice, so they need a file."""
    source, target = files
    write(source, [line("a", {"prompt": "Once"}), line("b", {"prompt": "One"})])
    os.mkfifo(target)
    reader = os.open(target, os.O_RDONLY | os.O_NONBLOCK)  # a pipe holds two answers, so nobody need read meanwhile
    try:
        assert run_batch(model, source, target).answered == 2
        read = os.read(reader, 2**16)
    finally:
        os.close(reader)
    assert {json.loads(one)["custom_id"] for one in read.splitlines()} == {"a", "b"}
    with pytest.raises(InputError, match=r"out\.jsonl: a pipe cannot be read twice"):
        run_batch(model, target, source)

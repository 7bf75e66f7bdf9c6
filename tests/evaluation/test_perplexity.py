"""`perplexity` and `accuracy`."""

import json
from math import exp, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.processes import invoke
from hypothesis import given, settings
from hypothesis import strategies as st

import mistral_portable as mp
from mistral_portable.errors import InputError, NumericsError
from mistral_portable.evaluation import accuracy, read_questions

STORY = "Once upon a time, there was a kind girl named Jane. Jane loved a black ring. The ring was new. " * 8


@pytest.fixture(scope="module")
def tiny() -> mp.Model:
    return mp.load("tiny", backend="numba", dtype="float32")


def counted(model: mp.Model, tokens: list[int], context: int) -> list[float]:
    """The losses by definition, computed chunk by chunk and token by token."""
    losses = []
    for start in range(0, len(tokens) // context * context, context):
        chunk = [model.tokenizer.bos_id, *tokens[start + 1 : start + context]]
        rows = model.logits(chunk).astype(np.float64)
        for position in range(context // 2, context - 1):
            probabilities = np.exp(rows[position] - rows[position].max())
            losses.append(-np.log(probabilities[chunk[position + 1]] / probabilities.sum()))
    return losses


@settings(max_examples=10)
@given(context=st.integers(2, 70).map(lambda half: 2 * half), length=st.integers(4, 300))
def test_the_second_half_of_each_chunk_is_scored(tiny: mp.Model, context: int, length: int) -> None:
    tokens = tiny.tokenizer.encode(STORY)[:length]
    if len(tokens) < context:
        with pytest.raises(InputError, match=f"the text has {len(tokens)} tokens, less than a chunk of {context}"):
            mp.perplexity(tiny, tokens, context=context)
        return
    found, expected = mp.perplexity(tiny, tokens, context=context), counted(tiny, tokens, context)
    assert (found.tokens, found.chunks) == (len(expected), len(tokens) // context)
    assert found.loss == pytest.approx(np.mean(expected), rel=1e-4)
    assert found.value == pytest.approx(exp(np.mean(expected)), rel=1e-3)
    error = sqrt(np.var(expected) / max(1, len(expected) - 1))
    assert found.loss_error == pytest.approx(error, rel=1e-3, abs=1e-6)
    assert found.error == pytest.approx(found.value * error, rel=1e-3, abs=1e-6)


def test_a_chunk_of_several_steps_and_text_as_tokens(tiny: mp.Model) -> None:
    tokens = tiny.tokenizer.encode(STORY * 6)
    assert len(tokens) > 1040
    assert tiny.manager.spec.max_chunk < 1040
    expected = counted(tiny, tokens, 1040)
    seen: list[tuple[int, int]] = []
    found = mp.perplexity(tiny, STORY * 6, context=1040, progress=lambda what, *done: seen.append(done))
    assert found.loss == pytest.approx(np.mean(expected), rel=1e-4)
    assert seen == [(1040, 1040)]
    assert tiny.manager.lanes == ()


@pytest.mark.parametrize("context", [0, 2, 5, -4, 2**20, "8"])
def test_contexts_that_make_no_sense(tiny: mp.Model, context: int) -> None:
    with pytest.raises(InputError, match="must be an even number from 4 to 32768"):
        mp.perplexity(tiny, STORY, context=context)


@pytest.mark.parametrize("token", [-1, 1024])
def test_ids_outside_the_vocabulary(tiny: mp.Model, token: int) -> None:
    with pytest.raises(InputError, match=f"token id {token} is outside the vocabulary of 1024"):
        mp.perplexity(tiny, [1, 2, token, 3], context=4)


def test_logits_that_are_not_finite_are_neither_scored_nor_counted_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with mp.load("tiny", backend="reference") as model:
        step = model.program.step

        def broken(*args: Any) -> Any:
            return {"logits": np.full_like(step(*args)["logits"], np.nan)}

        monkeypatch.setattr(model.program, "step", broken)
        with pytest.raises(NumericsError, match="not finite"):
            mp.perplexity(model, STORY, context=64)
        with pytest.raises(NumericsError, match="not finite"):
            accuracy(model, read_questions()[:1])


def test_the_embedded_model_knows_its_answers(tiny: mp.Model) -> None:
    found = accuracy(tiny, read_questions())
    assert found.total == 276
    assert found.buckets["inside W"] == (120, 120)
    assert found.buckets["plain chats"][1] == 60
    assert found.right == sum(right for right, _ in found.buckets.values())


def test_an_answer_must_be_exact(tiny: mp.Model, tmp_path: Path) -> None:
    question = {"messages": [{"role": "user", "content": "Adam felt brave. How did Adam feel?"}]}
    answers = ["Adam felt brave.", "Adam felt brave", "Adam felt glad.", "Adam felt brave. Adam"]
    path = tmp_path / "q.json"
    path.write_text(json.dumps([{**question, "answer": answer} for answer in answers]))
    found = accuracy(tiny, read_questions(path))
    assert (found.right, found.total, found.buckets) == (1, 4, {"all": (1, 4)})


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "[1]", '[{"messages": []}]', '[{"messages": "x", "answer": "y"}]', "[" * 100_000]
)
def test_files_that_hold_no_questions(tmp_path: Path, content: str) -> None:
    path = tmp_path / "q.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"q\.json: no"):
        read_questions(path)


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text(STORY)
    questions = tmp_path / "q.json"
    questions.write_text(json.dumps([{"messages": [{"role": "user", "content": "Hi"}], "answer": "Hi"}]))
    line = ("perplexity", "tiny", str(path), "--context", "64", "--backend", "numba")
    printed = invoke(*line, "--questions", str(questions))
    assert printed.status == 0
    assert printed.out.startswith("perplexity ")
    assert "right answers: " in printed.out
    report = json.loads(invoke(*line, "--questions", "tiny", "--json").out)
    assert f"perplexity {report['perplexity']:.4f} +/- {report['error']:.4f}" in printed.out
    assert report["answers"]["total"] == 276
    assert (report["context"], report["backend"]) == (64, "numba")


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("perplexity tiny", 2, "'FILE'"),
        ("perplexity tiny /no/such/text", 2, "/no/such/text: cannot be read: No such"),
        ("perplexity tiny TEXT --context 7", 2, "--context 7 must be an even number"),
        ("perplexity tiny TEXT --context 2", 2, "'--context'"),
        ("perplexity tiny TEXT --context 2000", 2, "less than a chunk of 2000"),
        ("perplexity tiny TEXT --questions /no/such", 2, "/no/such: not a JSON list of questions"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, line: str, status: int, words: str) -> None:
    (tmp_path / "text").write_text(STORY)
    result = invoke(*[word.replace("TEXT", str(tmp_path / "text")) for word in line.split()])
    assert (result.status, result.out) == (status, "")
    assert result.err.count("\n") == 1
    assert words in result.err

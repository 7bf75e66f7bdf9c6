"""accuracy(): the number of questions that a model answers exactly."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from mistral_portable.engine import Model
from mistral_portable.errors import InputError, NumericsError

__all__ = ["Accuracy", "Question", "accuracy", "read_questions"]

_TOGETHER = 4  # questions in a batch: the logits of all their tokens are in memory


@dataclass(frozen=True)
class Question:
    """A question. messages: a chat that the model answers. answer: the right answer. bucket: the kind of question."""

    messages: Sequence[Mapping[str, Any]]
    answer: str
    bucket: str


@dataclass(frozen=True)
class Accuracy:
    """The result of `accuracy`: `right` answers to `total` questions; buckets: (right, total) by kind of question."""

    right: int
    total: int
    buckets: Mapping[str, tuple[int, int]]


def read_questions(path: str | Path = "tiny") -> list[Question]:
    """Read questions from a JSON file: a list of objects with `messages`, `answer` and, optionally, `bucket`.

    "tiny": questions for the embedded model, which it was not trained on. Raises InputError for other files.
    """
    place = files("mistral_portable") / "assets/tiny/questions.json" if path == "tiny" else Path(path)
    try:
        items = json.loads(place.read_text(encoding="utf-8"))
        questions = [Question(item["messages"], item["answer"], str(item.get("bucket", "all"))) for item in items]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: not a JSON list of questions with messages and an answer: {type(error).__name__}: {error}"
        ) from error
    if not questions or not all(isinstance(q.answer, str) and isinstance(q.messages, list) for q in questions):
        raise InputError(f"{path}: no questions, or one whose messages are not a list or whose answer is not a string")
    return questions


def accuracy(
    model: Model, questions: Sequence[Question], *, progress: Callable[[str, int, int], None] | None = None
) -> Accuracy:
    """Count the questions whose greedy answer is exactly the right one, including the token that ends it.

    Nothing is generated: the greedy answer is the right one if and only if each of the right answer's tokens is the
    argmax of the logits after those before it, and one step over prompt and answer gives all of these logits.

    progress: called as ("questions", questions done, in total). Raises TokenizerError if the model has no tokenizer,
    and NumericsError if logits are not finite.
    """
    right: dict[str, list[bool]] = {}
    for start in range(0, len(questions), _TOGETHER):
        some = questions[start : start + _TOGETHER]
        prompts = [model.tokenizer.chat(question.messages) for question in some]
        answers = [[*model.tokenizer.encode(q.answer, bos=False), model.tokenizer.eos_id] for q in some]
        logits = model.logits([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
        for question, rows, prompt, answer in zip(some, logits, prompts, answers, strict=True):
            if not np.isfinite(rows).all():
                raise NumericsError("a logit is not finite: the weights are corrupt or the dtype overflowed")
            exact = rows[len(prompt) - 1 : -1].argmax(-1).tolist() == answer
            right.setdefault(question.bucket, []).append(exact)
        if progress:
            progress("questions", min(start + _TOGETHER, len(questions)), len(questions))
    buckets = {bucket: (sum(each), len(each)) for bucket, each in right.items()}
    return Accuracy(sum(one for one, _ in buckets.values()), len(questions), buckets)

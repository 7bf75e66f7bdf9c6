"""A model that says what a test wants: the tokens of an answer, whatever its weights would choose."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

import mistral_portable as mp

__all__ = ["call_tokens", "scripted"]


@contextmanager
def scripted(model: mp.Model, *answers: Sequence[int]) -> Iterator[None]:
    """Let the model's answers be these tokens, each with its end token, for the duration of a `with` block. Each answer
    continues the conversation of the one before: a step behind the end of an answer begins the next."""
    step, rest = model.program.step, list(answers)
    first, tokens = -1, rest.pop(0)

    def said(plan: Any, inputs: Any) -> Any:
        nonlocal first, tokens
        outputs = dict(step(plan, inputs))
        logits = outputs["logits"].copy()
        positions = plan.positions[plan.logit_rows].tolist()  # behind the prompt; a step may try several tokens
        if positions and first < 0:
            first = positions[0]
        elif positions and rest and positions[0] > first + len(tokens):
            first, tokens = positions[0], rest.pop(0)
        for row, position in zip(logits, positions, strict=True):
            said = tokens[position - first :]
            row[:] = -50
            row[said[0] if said else model.tokenizer.eos_id] = 50
        return {**outputs, "logits": logits}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.program, "step", said)
        yield


def call_tokens(model: mp.Model, calls: str) -> list[int]:
    """The tokens of calls as a v3 model writes them. calls: the JSON text of their list."""
    tokenizer: Any = model.tokenizer  # a CommonTokenizer
    begin = tokenizer.mistral.instruct_tokenizer.tokenizer.get_special_token("[TOOL_CALLS]")
    return [begin, *model.tokenizer.encode(calls, bos=False)]

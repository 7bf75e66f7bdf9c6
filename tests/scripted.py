"""A model that says what a test wants: the tokens of an answer, whatever its weights would choose."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

import mistral_portable as mp
from mistral_portable.engine.drafting import Drafting

__all__ = ["call_tokens", "scripted"]


@contextmanager
def scripted(model: mp.Model, tokens: Sequence[int]) -> Iterator[None]:
    """Let the model's one answer be these tokens, then its end token, for the duration of a `with` block."""
    step, rest = model.program.step, iter(tokens)

    def said(plan: Any, inputs: Any) -> Any:
        outputs = dict(step(plan, inputs))
        logits = outputs["logits"].copy()
        for row in logits:
            row[:] = -50
            row[next(rest, model.tokenizer.eos_id)] = 50
        return {**outputs, "logits": logits}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.program, "step", said)
        patch.setattr(Drafting, "choose", lambda self, turn: {})  # each row is the next token's
        yield


def call_tokens(model: mp.Model, calls: str) -> list[int]:
    """The tokens of calls as a v3 model writes them. calls: the JSON text of their list."""
    tokenizer: Any = model.tokenizer  # a CommonTokenizer
    begin = tokenizer.mistral.instruct_tokenizer.tokenizer.get_special_token("[TOOL_CALLS]")
    return [begin, *model.tokenizer.encode(calls, bos=False)]

"""The embedded model, made to write given tokens: it is too small to call tools by itself."""

from collections.abc import Sequence
from typing import Any

import pytest

from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.cache import StepPlan
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.tokenizer import Tokenizer

QUESTION = [{"role": "user", "content": "What is the weather?"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def script(monkeypatch: pytest.MonkeyPatch, prompt: Sequence[int], answer: Sequence[int]) -> None:
    """Let the reference backend answer this prompt with these tokens, the last one for ever."""
    step = ReferenceProgram.step

    def scripted(program: ReferenceProgram, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Any]:
        outputs = step(program, plan, inputs)
        for row, index in enumerate(plan.logit_rows):
            place = int(plan.positions[index]) + 1 - len(prompt)
            outputs["logits"][row, answer[max(0, min(place, len(answer) - 1))]] = 1e4
        return outputs

    monkeypatch.setattr(ReferenceProgram, "step", scripted)


def written(tokenizer: Tokenizer, *parts: str) -> list[int]:
    """Return ids: of control tokens by their names, and of other texts as they are encoded."""
    found = list[int]()
    for part in parts:
        control = tokenizer.control_id(part)
        found += tokenizer.encode(part, bos=False) if control is None else [control]
    return found

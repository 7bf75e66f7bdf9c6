"""Executors, messages and checks that the tests of the documented pages share."""

from typing import Any

from mistral_portable.boundary.registry import candidates

EXECUTORS = [candidate.name for candidate in candidates() if candidate.availability.score > 0]

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "What is your favourite condiment?"},
    {
        "role": "assistant",
        "content": "Well, I'm quite partial to a good squeeze of fresh lemon juice. It adds just the right amount of "
        "zesty flavour to whatever I'm cooking up in the kitchen!",
    },
    {"role": "user", "content": "Do you have mayonnaise recipes?"},
]


def continues_the_prompt(text: str) -> bool:
    """Whether a decoded text, pieces as they are, begins with "My favourite condiment is"."""
    return text.startswith("<s>▁My▁favourite▁condiment▁is")


def answers_the_chat(text: str) -> bool:
    """Whether a decoded text, pieces as they are, begins with MESSAGES in Mistral's template."""
    return text.startswith("<s>[INST]▁What▁is") and "▁kitchen!</s>[INST]▁Do▁you▁have▁mayonnaise▁recipes?[/INST]" in text

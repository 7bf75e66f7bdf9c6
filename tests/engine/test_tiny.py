"""The embedded model does what its card says: it answers from the text, and it writes stories."""

import json
from importlib.resources import files
from typing import Any

import pytest

import mistral_portable as mp

QUESTIONS: list[dict[str, Any]] = json.loads((files("mistral_portable") / "assets/tiny/questions.json").read_text())
INSIDE = [item for item in QUESTIONS if item["bucket"] == "inside W"]
PLAIN = [item for item in QUESTIONS if item["bucket"] == "plain chats"]


def exact(model: mp.Model, items: list[dict[str, Any]]) -> list[bool]:
    """Whether greedy decoding gives the right answer and then ends: each token of it is the likeliest in turn."""
    prompts = [model.tokenizer.chat(item["messages"]) for item in items]
    answers = [[*model.tokenizer.encode(item["answer"], bos=False), model.tokenizer.eos_id] for item in items]
    logits = model.logits([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    return [
        rows[len(prompt) - 1 : -1].argmax(-1).tolist() == answer
        for rows, prompt, answer in zip(logits, prompts, answers, strict=True)
    ]


def test_nine_of_ten_answers_are_right_where_the_fact_is_inside_the_window(tiny: mp.Model) -> None:
    right = exact(tiny, INSIDE)
    assert len(right) >= 100
    assert sum(right) >= 0.9 * len(right)


def test_nine_of_ten_answers_are_right_in_plain_chats(tiny: mp.Model) -> None:
    right = exact(tiny, PLAIN)
    assert len(right) >= 60
    assert sum(right) >= 0.9 * len(right)


@pytest.mark.parametrize("item", [*INSIDE[::30], *PLAIN[::15]], ids=lambda item: item["answer"])
def test_chat_answers(tiny: mp.Model, item: dict[str, Any]) -> None:
    out = tiny.chat(item["messages"], max_tokens=32, temperature=0)
    assert (out.text == item["answer"]) == exact(tiny, [item])[0]
    assert out.finish_reason == "stop"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Tom has a red ball. What color is the ball?", "red"),  # README's
        ("Tom has a red ball. Who has the ball?", "Tom"),
        ("Tom had a red ball. What color is Tom's ball?", "red"),
        ("Hi", "Hello"),
        ("How are you?", "well"),
        ("Thank you!", "welcome"),
        ("What can you do?", "story"),
        ("Who are you?", "tiny"),
        ("Bye", "Goodbye"),
    ],
)
def test_chat_answers_whatever_the_seed(tiny: mp.Model, message: str, words: str) -> None:
    """With the default temperature; each word is in none of the other topics' answers."""
    for seed in range(8):
        out = tiny.chat(message, seed=seed)
        assert words in out.text, (seed, out.text)
        assert out.finish_reason == "stop"


def test_a_story_goes_on_and_ends_far_beyond_the_window(tiny: mp.Model) -> None:
    out = tiny.generate("Once upon a time", max_tokens=300, temperature=0)
    assert out.text.startswith(", there w")
    assert len(out.tokens) > 2 * 64
    assert out.text.endswith(".")

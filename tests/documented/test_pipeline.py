"""pipeline("text-generation") gives the texts of its model and tokenizer."""

from typing import Any

import pytest

import mistral_portable as mp
from mistral_portable.transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}
MESSAGES = [{"role": "user", "content": "Mia has a red ball. Who has a ball?"}]


@pytest.fixture(scope="module")
def chatbot() -> Any:
    return pipeline("text-generation", model="tiny", backend="reference")


@pytest.fixture(scope="module")
def native() -> Any:
    return mp.load("tiny", backend="reference")


def test_texts(chatbot: Any, native: Any) -> None:
    expected = native.generate("Once upon a time", max_tokens=12, temperature=0).text
    assert chatbot("Once upon a time", **GREEDY) == [{"generated_text": "Once upon a time" + expected}]
    assert chatbot("Once upon a time", return_full_text=False, **GREEDY) == [{"generated_text": expected}]
    assert chatbot(["Once upon a time"] * 2, **GREEDY) == [[{"generated_text": "Once upon a time" + expected}]] * 2


def test_chats(chatbot: Any, native: Any) -> None:
    expected = native.chat(MESSAGES, max_tokens=12, temperature=0).text
    (found,) = chatbot(MESSAGES, **GREEDY)
    assert found["generated_text"] == [*MESSAGES, {"role": "assistant", "content": expected}]
    assert len(MESSAGES) == 1


def test_an_answer_that_has_begun_is_continued(chatbot: Any) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "Mia"}]
    (found,) = chatbot(begun, **GREEDY)
    assert len(found["generated_text"]) == 2
    assert found["generated_text"][1]["content"].startswith("Mia")


def test_several_answers_are_drawn(chatbot: Any) -> None:
    found = chatbot("Once upon a time", num_return_sequences=3, max_length=14, seed=1, temperature=1.5)
    assert len({one["generated_text"] for one in found}) == 3


def test_of_a_model_and_a_tokenizer(chatbot: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained("tiny", backend="reference")
    made = pipeline(model=model, tokenizer=AutoTokenizer.from_pretrained("tiny"))
    assert made("Once upon", **GREEDY) == chatbot("Once upon", **GREEDY)


@pytest.mark.parametrize("device", [None, -1, 0, "cpu"])
def test_devices_where_there_is_nothing_to_choose(device: Any) -> None:
    assert pipeline("text-generation", "tiny", device=device, backend="numba").model.decoder.config.vocab_size == 1024


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "fill-mask", "model": "tiny"}, "task='fill-mask': only 'text-generation' is there"),
        ({"task": "text-generation"}, "pipeline needs a model"),
        ({"model": "tiny", "device": 0, "device_map": "auto"}, "pass one of them"),
        ({"model": "tiny", "device": 1, "backend": "reference"}, "pass backend='torch'"),
    ],
)
def test_what_cannot_be_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


@pytest.mark.parametrize("prompt", [[], 7, [7], [[]]])
def test_what_is_no_prompt(chatbot: Any, prompt: Any) -> None:
    with pytest.raises(ValueError, match="pass a text, a list of messages, or a list of either"):
        chatbot(prompt, **GREEDY)

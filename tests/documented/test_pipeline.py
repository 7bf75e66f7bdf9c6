"""pipeline("text-generation") gives the texts of its model and tokenizer."""

from typing import Any

import pytest

import mistral_portable as mp
from mistral_portable.transformers import AutoModelForCausalLM, AutoTokenizer, MistralCommonBackend, pipeline

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


def test_whether_a_message_is_continued_can_be_said(chatbot: Any) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "Mia"}]
    assert chatbot(begun, continue_final_message=True, **GREEDY) == chatbot(begun, **GREEDY)
    with pytest.raises(Exception, match=r"assistant|last"):  # the template's: a chat ends where the model answers
        chatbot(begun, continue_final_message=False, **GREEDY)


def test_prompts_run_together_as_if_alone(chatbot: Any) -> None:
    prompts = ["Once upon a time", "Mia", MESSAGES, "Tom had a red ball."]
    alone = chatbot(prompts, **GREEDY)
    assert [chatbot(prompt, **GREEDY) for prompt in prompts] == alone
    for batch_size in (2, 3, 4, 9):
        assert chatbot(prompts, batch_size=batch_size, **GREEDY) == alone


def test_an_iterator_is_read_as_results_are(chatbot: Any) -> None:
    read: list[str] = []

    def prompts() -> Any:
        for prompt in ("Once", "Mia", "Tom"):
            read.append(prompt)
            yield prompt

    results = chatbot(prompts(), **GREEDY)
    assert read == []
    assert next(results) == chatbot("Once", **GREEDY)
    assert read == ["Once"]
    assert [*results] == chatbot(["Mia", "Tom"], **GREEDY)
    with pytest.raises(ValueError, match="pass a text, a list of messages"):
        next(chatbot(iter([7]), **GREEDY))


def test_tools_are_shown_to_the_model(chatbot: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    (with_tools,) = chatbot(MESSAGES, tools=[tool], return_tensors=True, **GREEDY)
    ids = chatbot.tokenizer.apply_chat_template(MESSAGES, tools=[tool])
    assert with_tools["generated_token_ids"][: len(ids)] == ids
    assert len(with_tools["generated_token_ids"]) > len(ids)


def test_ids_in_place_of_a_text(chatbot: Any) -> None:
    (found,) = chatbot("Once upon a time", return_tensors=True, **GREEDY)
    ids = chatbot.tokenizer.encode("Once upon a time")
    assert found == {"generated_token_ids": chatbot.model.generate([ids], **GREEDY)[0].tolist()}
    assert chatbot("Once", return_text=True, **GREEDY) == chatbot("Once", **GREEDY)
    for both in ({"return_text": True}, {"return_full_text": True}):
        with pytest.raises(ValueError, match="return_tensors=True goes with neither"):
            chatbot("Once", return_tensors=True, **both)


def test_a_prefix_is_read_and_not_shown(chatbot: Any) -> None:
    (found,) = chatbot(" upon a time", prefix="Once", **GREEDY)
    (whole,) = chatbot("Once upon a time", **GREEDY)
    assert "Once" + found["generated_text"] == whole["generated_text"]


def test_several_answers_are_drawn(chatbot: Any) -> None:
    found = chatbot("Once upon a time", num_return_sequences=3, max_length=14, seed=1, temperature=1.5)
    assert len({one["generated_text"] for one in found}) == 3


def test_of_a_model_and_a_tokenizer(chatbot: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained("tiny", backend="reference")
    made = pipeline(model=model, tokenizer=AutoTokenizer.from_pretrained("tiny"))
    assert made("Once upon", **GREEDY) == chatbot("Once upon", **GREEDY)


def test_of_the_newer_class_of_tokenizers(chatbot: Any) -> None:
    made = pipeline(model=chatbot.model, tokenizer=MistralCommonBackend.from_pretrained("tiny"))
    assert made([MESSAGES, "Once"], **GREEDY) == chatbot([MESSAGES, "Once"], **GREEDY)


@pytest.mark.parametrize("device", [None, -1, 0, "cpu"])
def test_devices_where_there_is_nothing_to_choose(device: Any) -> None:
    assert pipeline("text-generation", "tiny", device=device, backend="numba").model.decoder.config.vocab_size == 1024


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "fill-mask", "model": "tiny"}, "task='fill-mask': there are text-generation, text-classification"),
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
    with pytest.raises(ValueError, match="pass a text, a list of messages, a list of either, or an iterator"):
        chatbot(prompt, **GREEDY)

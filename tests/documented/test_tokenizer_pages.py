"""The tokenizer's lines of the pages' examples, with the embedded model in place of the 7B."""

from typing import Any

import numpy as np
import torch

from mistral_portable.transformers import AutoTokenizer, LlamaTokenizer

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "What is your favourite condiment?"},
    {"role": "assistant", "content": "Well, I'm quite partial to a good squeeze of fresh lemon juice."},
    {"role": "user", "content": "Do you have mayonnaise recipes?"},
]


def test_a_chat() -> None:
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    model_inputs = tokenizer.apply_chat_template(MESSAGES, return_tensors="pt").to("cpu")
    assert isinstance(model_inputs, torch.Tensor)
    assert model_inputs.shape[0] == 1
    text = tokenizer.batch_decode(model_inputs)[0]
    assert text.startswith("<s>[INST]")
    assert text.endswith("[/INST]")
    assert text.count("</s>") == 1


def generate(input_ids: Any, attention_mask: Any, max_new_tokens: int) -> Any:
    """Stands for a model's: the prompt again."""
    return input_ids * attention_mask


def test_a_prompt_in_a_list() -> None:
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    prompt = "My favourite condiment is"
    model_inputs = tokenizer([prompt], return_tensors="pt").to("cpu")
    generated = generate(**model_inputs, max_new_tokens=100)
    assert tokenizer.batch_decode(generated, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0] == prompt


def test_a_prompt_as_arrays_of_numpy() -> None:
    inputs = AutoTokenizer.from_pretrained("tiny")("Hello, my dog is cute", return_tensors="np")
    assert isinstance(inputs.input_ids, np.ndarray)
    assert inputs.input_ids.shape == inputs.attention_mask.shape


def test_converted_weights() -> None:
    assert (
        LlamaTokenizer.from_pretrained("tiny").encode("Hello")
        == AutoTokenizer.from_pretrained("tiny")("Hello").input_ids
    )

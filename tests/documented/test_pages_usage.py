"""The pages' examples of use, on every installed executor: "tiny" for the 7B, and the executor's name, are added.

The pages say "cuda" where these examples say `model.device`, as the page of v4.56 does.
"""

from typing import Any

import pytest
import torch
from documented.pages import EXECUTORS, MESSAGES, answers_the_chat, continues_the_prompt

from mistral_portable.errors import BackendError
from mistral_portable.transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MistralForCausalLM,
    pipeline,
)

pytestmark = [
    pytest.mark.parametrize("backend", EXECUTORS),
    pytest.mark.filterwarnings("ignore:backend .* computes in float32", "ignore:backend .* has an attention"),
]


@pytest.mark.parametrize("dtype", ["dtype", "torch_dtype"])
def test_pipeline(backend: str, dtype: str) -> None:
    messages = MESSAGES
    device = -1 if backend == "torch" and not torch.cuda.is_available() else 0

    options: dict[str, Any] = {dtype: torch.bfloat16, "device": device}
    chatbot = pipeline("text-generation", model="tiny", **options, backend=backend)
    [found] = chatbot(messages)
    assert found["generated_text"][:-1] == messages
    assert found["generated_text"][-1]["role"] == "assistant"


def test_automodel(backend: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        "tiny", torch_dtype=torch.bfloat16, attn_implementation="sdpa", device_map="auto", backend=backend
    )
    tokenizer = AutoTokenizer.from_pretrained("tiny")

    messages = MESSAGES

    model_inputs = tokenizer.apply_chat_template(messages, return_tensors="pt").to(model.device)

    generated_ids = model.generate(model_inputs, max_new_tokens=100, do_sample=True)
    assert answers_the_chat(tokenizer.batch_decode(generated_ids)[0])


def test_the_base_model(backend: str) -> None:
    model = AutoModelForCausalLM.from_pretrained("tiny", device_map="auto", backend=backend)
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    device = model.device

    prompt = "My favourite condiment is"

    model_inputs = tokenizer([prompt], return_tensors="pt").to(device)
    model.to(device)

    generated_ids = model.generate(**model_inputs, max_new_tokens=100, do_sample=True)
    assert isinstance(generated_ids, torch.Tensor)
    assert continues_the_prompt(tokenizer.batch_decode(generated_ids)[0])


def test_the_instruction_tuned_model(backend: str) -> None:
    model = AutoModelForCausalLM.from_pretrained("tiny", device_map="auto", backend=backend)
    tokenizer = AutoTokenizer.from_pretrained("tiny")

    messages = MESSAGES

    model_inputs = tokenizer.apply_chat_template(messages, return_tensors="pt").to(model.device)

    generated_ids = model.generate(model_inputs, max_new_tokens=100, do_sample=True)
    assert answers_the_chat(tokenizer.batch_decode(generated_ids)[0])


def test_mistral_for_causal_lm(backend: str) -> None:
    """The embedded model's vocabulary is small: it needs 25 tokens for this prompt, so that it writes up to 5."""
    model = MistralForCausalLM.from_pretrained("tiny", backend=backend)
    tokenizer = AutoTokenizer.from_pretrained("tiny")

    prompt = "Hey, are you conscious? Can you talk to me?"
    inputs = tokenizer(prompt, return_tensors="pt")

    generate_ids = model.generate(inputs.input_ids, max_length=30)
    text = tokenizer.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]
    assert text.startswith(prompt)
    assert inputs.input_ids.shape[1] < generate_ids.shape[1] <= 30


def test_a_batch_is_padded_on_the_left(backend: str) -> None:
    """Each prompt of a left-padded batch is continued as if it were alone, beyond the window of 64 tokens."""
    model = AutoModelForCausalLM.from_pretrained("tiny", dtype="float32", backend=backend)
    tokenizer = AutoTokenizer.from_pretrained("tiny", padding_side="left")
    prompts = ["Mia has a red ball. Tom has a green box. Who has a ball?", "Once upon a time"]

    model_inputs = tokenizer(prompts, padding=True, return_tensors="pt").to(model.device)
    columns = model_inputs.input_ids.shape[1]
    generated_ids = model.generate(**model_inputs, max_new_tokens=60)[:, columns:]
    for prompt, row in zip(prompts, generated_ids, strict=True):
        alone = tokenizer([prompt], return_tensors="pt").to(model.device)
        expected = model.generate(**alone, max_new_tokens=60)[0, alone.input_ids.shape[1] :]
        assert tokenizer.decode(row) == tokenizer.decode(expected) + "</s>" * (len(row) - len(expected))


def test_the_pages_cuda_is_refused_where_there_is_none(backend: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    model = AutoModelForCausalLM.from_pretrained("tiny", device_map="auto", backend=backend)
    with pytest.raises(ValueError, match="the model is on cpu: to have it on cuda, load it with device_map='cuda'"):
        model.to("cuda")
    if backend == "torch":
        with pytest.raises(BackendError, match=r"device='cuda:0'.*choose another device, or leave the option out"):
            pipeline("text-generation", model="tiny", device=0, backend=backend)

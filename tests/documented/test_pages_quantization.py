"""The pages' example of four bits, on every installed executor.

The pages make a BitsAndBytesConfig and then pass `quantization_config=True`, which is refused; here they pass it.
"""

from typing import Any

import pytest
import torch
from documented.pages import EXECUTORS, MESSAGES, answers_the_chat

from mistral_portable.transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

pytestmark = pytest.mark.filterwarnings("ignore:backend .* computes in float32", "ignore:backend .* has ggml's q4_0")


@pytest.mark.parametrize("backend", EXECUTORS)
@pytest.mark.parametrize("options", [{"torch_dtype": torch.bfloat16}, {"dtype": torch.bfloat16}, {}])
def test_four_bits(backend: str, options: dict[str, Any]) -> None:
    # specify how to quantize the model
    quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype="torch.float16",
    )

    if backend == "torch":
        pytest.importorskip("bitsandbytes")
    model = AutoModelForCausalLM.from_pretrained(
        "tiny", quantization_config=quantization_config, **options, device_map="auto", backend=backend
    )
    tokenizer = AutoTokenizer.from_pretrained("tiny")

    messages = MESSAGES

    model_inputs = tokenizer.apply_chat_template(messages, return_tensors="pt").to(model.device)

    generated_ids = model.generate(model_inputs, max_new_tokens=100, do_sample=True)
    assert answers_the_chat(tokenizer.batch_decode(generated_ids)[0])


def test_what_the_pages_pass_is_refused() -> None:
    with pytest.raises(ValueError, match="quantization_config=True: pass the BitsAndBytesConfig itself"):
        AutoModelForCausalLM.from_pretrained("tiny", quantization_config=True, device_map="auto")

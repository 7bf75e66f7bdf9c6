"""The pages' examples of FlashAttention 2: they run where it can; torch on a CPU refuses, the others say what they do.

`use_flash_attention_2=True` is v4.34's name of `attn_implementation="flash_attention_2"`.
"""

import warnings
from typing import Any

import pytest
import torch
from documented.pages import EXECUTORS, continues_the_prompt

from mistral_portable.errors import BackendError
from mistral_portable.transformers import AutoModelForCausalLM, AutoTokenizer

SPELLINGS: list[dict[str, Any]] = [
    {"attn_implementation": "flash_attention_2", "device_map": "auto"},
    {"use_flash_attention_2": True},
]


@pytest.mark.parametrize("backend", EXECUTORS)
@pytest.mark.parametrize("options", SPELLINGS)
def test_the_base_model(backend: str, options: dict[str, Any]) -> None:
    if backend == "torch" and not torch.cuda.is_available():
        with pytest.raises(BackendError, match="attention='flash_attn': it needs a CUDA GPU, and this is cpu"):
            AutoModelForCausalLM.from_pretrained("tiny", torch_dtype=torch.float16, **options, backend=backend)
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = AutoModelForCausalLM.from_pretrained("tiny", torch_dtype=torch.float16, **options, backend=backend)
    own = f"backend '{backend}' has an attention of its own, not flash_attention_2"
    assert (own in [str(warning.message) for warning in said]) == (backend != "torch")
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    device = model.device

    prompt = "My favourite condiment is"

    model_inputs = tokenizer([prompt], return_tensors="pt").to(device)
    model.to(device)

    generated_ids = model.generate(**model_inputs, max_new_tokens=100, do_sample=True)
    assert continues_the_prompt(tokenizer.batch_decode(generated_ids)[0])


def test_two_names_for_one_thing_must_agree() -> None:
    with pytest.raises(ValueError, match="attn_implementation='sdpa' and use_flash_attention_2=True: pass one of them"):
        AutoModelForCausalLM.from_pretrained("tiny", attn_implementation="sdpa", use_flash_attention_2=True)

"""The pages' command lines, in a shell, with this package's command for transformers' and "tiny" for the 7B."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from documented.pages import EXECUTORS

import mistral_portable as mp
from mistral_portable.transformers import AutoModelForCausalLM, LlamaTokenizer, MistralForCausalLM

OURS = shlex.join([sys.executable, "-m", "mistral_portable"])


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """One thread for torch: see conftest.py."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.parametrize("backend", EXECUTORS)
def test_chat(backend: str) -> None:
    """Without the page's choice of a device and of a kernel, which CPUs do not have; and shorter."""
    options = f"--torch_dtype auto --backend {backend} --max-tokens 8"
    done = shell(f'echo -e "My favorite condiment is" | {OURS} chat tiny {options}')
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
@pytest.mark.parametrize("option", ["--device 0", "--attn_implementation flash_attention_2"])
def test_chat_on_a_gpu_that_is_not_there(option: str) -> None:
    done = shell(f'echo -e "My favorite condiment is" | {OURS} chat tiny --torch_dtype auto {option}')
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "leave the option out" in done.stderr


@pytest.mark.parametrize("backend", EXECUTORS)
def test_converting_raw_weights_and_opening_them(backend: str, tmp_path: Path) -> None:
    """The size is the embedded model's. The page misspells a name in the import that follows (LlamaTokenzier)."""
    raw, output = mp.convert("tiny", tmp_path / "weights", "raw"), tmp_path / "output"
    command = f"""{OURS} convert \\
        --input_dir {shlex.quote(str(raw))} --model_size 4M --output_dir {shlex.quote(str(output))}"""
    done = shell(command)
    assert (done.returncode, done.stderr) == (0, "")

    tokenizer = LlamaTokenizer.from_pretrained(output)
    model = MistralForCausalLM.from_pretrained(output, backend=backend)

    ids = tokenizer(["Once upon a time"], return_tensors="np").input_ids
    before = AutoModelForCausalLM.from_pretrained("tiny", backend=backend)
    np.testing.assert_array_equal(model(ids).logits, before(ids).logits)

"""transformers, mlx-lm and llama.cpp load converted models, and generate the same tokens as this library."""

import importlib.util
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from convert.test_round_trips import write_mlx

import mistral_portable as mp
from mistral_portable.weights import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PROMPT = "Once upon a time"
TOKENS = 100  # more than the window of 64
SOURCES = ["tiny", "gguf", "raw"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    """The embedded model, also as a GGUF file and as Mistral's own files."""
    folder = tmp_path_factory.mktemp("sources")
    return {
        "tiny": "tiny",
        "gguf": mp.convert("tiny", folder / "tiny.gguf", "gguf"),
        "raw": mp.convert("tiny", folder / "raw", "raw"),
    }


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return mp.load("tiny", backend="reference").tokenizer.encode(PROMPT)


@pytest.fixture(scope="module")
def windowed(prompt: list[int]) -> list[int]:
    return greedy("tiny", prompt)


@pytest.fixture(scope="module")
def windowless(prompt: list[int], windowed: list[int]) -> list[int]:
    """The tokens expected of mlx-lm and llama.cpp, which have no window for this architecture."""
    tokens = greedy("tiny", prompt, window=None)
    assert tokens != windowed
    return tokens


def greedy(model: str | Path, prompt: list[int], **options: Any) -> list[int]:
    with mp.load(model, backend="reference", dtype="float32", **options) as loaded:
        return list(loaded.generate(prompt, max_tokens=TOKENS, temperature=0, ignore_eos=True).tokens)


@pytest.mark.parametrize("source", SOURCES)
def test_transformers(
    tmp_path: Path, sources: dict[str, Path | str], source: str, prompt: list[int], windowed: list[int]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = mp.convert(sources[source], tmp_path / "hf", "hf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode(PROMPT) == prompt
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # One pass over the whole text: the argmax after each of its prefixes is the next token.
    with torch.no_grad():
        logits = model(torch.tensor([prompt + windowed])).logits[0]
    assert logits.argmax(-1)[len(prompt) - 1 : -1].tolist() == windowed


@pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed")
@pytest.mark.parametrize("source", SOURCES)
def test_mlx_lm(
    tmp_path: Path, sources: dict[str, Path | str], source: str, prompt: list[int], windowless: list[int]
) -> None:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    with pytest.warns(UserWarning, match="mlx-lm does not apply it"):
        folder = mp.convert(sources[source], tmp_path / "mlx", "mlx", dtype="float32")
    model, tokenizer = load(str(folder))[:2]
    assert tokenizer.encode(PROMPT) == prompt
    found = [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=TOKENS)]
    assert found == windowless


@pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed")
def test_mlx_lm_runs_packed_weights_as_they_were(tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    write_mlx(tmp_path / "source")
    folder = mp.convert(tmp_path / "source", tmp_path / "m", "mlx")
    tokens = mx.array([list(range(40))])
    expected, found = (load_model(path)[0](tokens) for path in (tmp_path / "source", folder))
    assert mx.array_equal(found, expected)


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python takes 12 minutes to build: pip install 'mistral-portable[bench]', then run this test",
)
@pytest.mark.parametrize("source", SOURCES)
def test_llama_cpp(
    tmp_path: Path, sources: dict[str, Path | str], source: str, prompt: list[int], windowless: list[int]
) -> None:
    from llama_cpp import Llama

    with pytest.warns(UserWarning, match=r"llama\.cpp does not apply it"):
        path = mp.convert(sources[source], tmp_path / "m.gguf", "gguf", dtype="float32")
    llama = Llama(str(path), n_ctx=256, verbose=False, n_gpu_layers=0)
    assert llama.tokenize(PROMPT.encode(), special=False) == prompt
    found = list(islice(llama.generate(prompt, temp=0, top_k=1, repeat_penalty=1.0), TOKENS))
    assert found == windowless
    assert llama.metadata["tokenizer.chat_template"] == "mistral-v3"


def test_what_transformers_saves_converts(tmp_path: Path, prompt: list[int], windowed: list[int]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(open_checkpoint("tiny").path)
    model.save_pretrained(tmp_path / "saved", max_shard_size="2MB")
    path = mp.convert(tmp_path / "saved", tmp_path / "m.gguf", "gguf")
    assert greedy(path, prompt) == windowed

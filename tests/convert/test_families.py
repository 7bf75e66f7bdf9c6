"""Small models of the families whose files differ: every conversion and back; other libraries read the results."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import hf_model
from numpy.typing import NDArray
from weights.files import random_tensors, small_config, write_hf

import mistral_portable as mp
from mistral_portable.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    MistralConfig,
    QueryScale,
    RopeScaling,
)
from mistral_portable.errors import ConfigError
from mistral_portable.testing.families import FAMILIES, shrunk
from mistral_portable.weights import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

UNLIKE = ("Nemo 12B", "Ministral 8B", "Ministral 3 3B", "Devstral 2 123B", "Mixtral 8x7B")
TEXT = np.random.default_rng(0).integers(0, 64, 40).tolist()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model saved by transformers."""
    folder = tmp_path_factory.mktemp("saved")
    for name in UNLIKE:
        hf_model(shrunk(FAMILIES[name]), seed=2).save_pretrained(folder / name)
    return {name: folder / name for name in UNLIKE}


def answers(config: MistralConfig) -> MistralConfig:
    return replace(config, sliding_window=config.layer_windows, initializer_range=0.0, pad_token_id=None, extra={})


def by_transformers(folder: Path) -> NDArray[np.float32]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.tensor([TEXT]), use_cache=False).logits[0].numpy()
    return logits


@pytest.mark.parametrize("to", ["raw", "gguf", "mlx"])
@pytest.mark.parametrize("name", UNLIKE)
def test_there_and_back_every_bit_is_the_same(tmp_path: Path, saved: dict[str, Path], name: str, to: str) -> None:
    source = open_checkpoint(saved[name])
    there = mp.convert(saved[name], tmp_path / f"there.{to}", to)
    back = mp.convert(there, tmp_path / "back", "hf")
    for path in (there, back):
        opened = open_checkpoint(path)
        assert answers(opened.config) == answers(source.config)
        for tensor in source.tensors.values():
            assert np.array_equal(opened.tensors[tensor.name].numpy(), tensor.numpy()), tensor.name
    np.testing.assert_array_equal(by_transformers(back), by_transformers(saved[name]))


@pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed")
@pytest.mark.parametrize("name", UNLIKE)
def test_mlx_lm_gives_the_logits_of_transformers(tmp_path: Path, saved: dict[str, Path], name: str) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    folder = mp.convert(saved[name], tmp_path / "mlx", "mlx")
    found = np.array(load_model(folder)[0](mx.array([TEXT]))[0])
    expected = by_transformers(saved[name])
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python takes 12 minutes to build: pip install 'mistral-portable[bench]', then run this test",
)
@pytest.mark.parametrize("name", [name for name in UNLIKE if name != "Ministral 8B"])  # it has no windows for `llama`
def test_llama_cpp_gives_the_logits_of_transformers(tmp_path: Path, saved: dict[str, Path], name: str) -> None:
    from llama_cpp import Llama

    path = mp.convert(saved[name], tmp_path / "m.gguf", "gguf")
    floats: Any = 0  # of keys and values, as everything else
    llama = Llama(str(path), n_ctx=64, verbose=False, n_gpu_layers=0, logits_all=True, type_k=floats, type_v=floats)
    llama.eval(TEXT)
    found = np.array(llama.scores[: len(TEXT)])
    expected = by_transformers(saved[name])
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("to", "changes"),
    [
        ("gguf", {"query_scale": QueryScale(0.1, 16)}),
        ("hf", {"query_scale": QueryScale(0.1, 16)}),
        ("hf", {"sliding_window": (None, 8)}),
        ("hf", {"num_local_experts": 2, "num_experts_per_tok": 1}),
        ("mlx", {"sliding_window": (4, 8)}),
        ("gguf", {"sliding_window": (4, 8)}),
    ],
)
def test_what_a_format_cannot_say_is_refused(tmp_path: Path, to: str, changes: dict[str, Any]) -> None:
    from mistral_portable.conversion.convert import FORMATS
    from mistral_portable.conversion.model import prepare
    from mistral_portable.graph import build
    from mistral_portable.testing import random_weights
    from mistral_portable.weights import Checkpoint

    config = replace(shrunk(FAMILIES["Ministral 3 8B"]), **changes)
    tensors = random_weights(build(config), seed=0)
    model = prepare(Checkpoint(tmp_path / "m", "raw", config, tensors, None, (), {}), config, None)
    plan, write = FORMATS[to]
    target = tmp_path / "out"
    if to != "gguf":
        target.mkdir()
    with pytest.raises(ConfigError) as caught:
        write(target, model, plan(model), lambda part: None)
    assert len(str(caught.value).splitlines()) == 1


def test_rope_of_finetunes(tmp_path: Path) -> None:
    """Each scaling goes to hf, where transformers reads it; linear ones to GGUF, too; else the error names the type."""
    eights, ones = (8.0,) * 8, (1.0,) * 8
    scalings: list[RopeScaling] = [
        *(LinearScaling(4.0), DynamicScaling(2.0), Llama3Scaling(8.0, 16, 1.0, 4.0)),
        LongRope(ones, eights, 16, 1.25),
    ]
    for scaling in scalings:
        config = small_config(rope_scaling=scaling)
        source, hf, other = (tmp_path / f"{name}-{scaling.kind}" for name in ("source", "hf", "other"))
        write_hf(source, config, random_tensors(config, np.random.default_rng(0)))
        mp.convert(source, hf, "hf")
        assert answers(open_checkpoint(hf).config) == answers(open_checkpoint(source).config)
        np.testing.assert_array_equal(by_transformers(hf), by_transformers(source))
        for to in ("raw", "mlx", "gguf"):
            if (to, scaling.kind) == ("gguf", "linear"):
                mp.convert(source, other, to)
                assert open_checkpoint(other).config.rope_scaling == scaling
                continue
            with pytest.raises(ConfigError, match=f"RoPE of the type '{scaling.kind}'.* convert it to hf"):
                mp.convert(source, other, to)

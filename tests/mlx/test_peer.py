"""mlx-lm on the same folder: the same logits in float32, while its full attention sees no more than the window."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from weights.files import random_tensors, small_config, write_hf

import mistral_portable as mp
from mistral_portable.testing import nmse

pytestmark = pytest.mark.usefixtures("uncompiled")


@settings(max_examples=10)
@given(
    kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([8, 16, 40]),
    theta=st.sampled_from([1e4, 1e6]),
    window=st.sampled_from([None, 40]),
    tied=st.booleans(),
    length=st.integers(1, 40),
    chunk=st.sampled_from([1, 7, 40]),
    seed=st.integers(0, 2**31),
)
def test_logits_equal_mlx_lm(
    tmp_path_factory: pytest.TempPathFactory,
    kv_heads: int,
    head_dim: int,
    theta: float,
    window: int | None,
    tied: bool,
    length: int,
    chunk: int,
    seed: int,
) -> None:
    config = small_config(
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        sliding_window=window,
        tie_word_embeddings=tied,
    )
    folder = tmp_path_factory.mktemp("model")
    random = np.random.default_rng(seed)
    write_hf(folder, config, random_tensors(config, random))
    tokens = random.integers(0, config.vocab_size, length).tolist()
    peer, _ = load_model(folder)
    cache = make_prompt_cache(peer)
    chunks = [tokens[begin : begin + chunk] for begin in range(0, length, chunk)]
    expected = np.concatenate([np.array(peer(mx.array([part]), cache=cache)[0]) for part in chunks])
    with mp.load(folder, backend="mlx", dtype="float32") as model:
        assert nmse(model.logits(tokens, chunk=chunk), expected) <= 1e-4


def test_logits_of_its_quantized_repository_equal_its_own(tmp_path: Path) -> None:
    from mlx_lm.utils import quantize_model, save_config, save_model

    config = small_config(hidden_size=128, intermediate_size=256, head_dim=32)
    source, folder = tmp_path / "source", tmp_path / "quantized"
    write_hf(source, config, random_tensors(config, np.random.default_rng(0)))
    peer, settings_ = load_model(source)
    peer, settings_ = quantize_model(peer, settings_, group_size=64, bits=4)
    save_model(folder, peer)
    save_config(settings_, folder / "config.json")
    tokens = list(range(60))
    expected = np.array(peer(mx.array([tokens]))[0])
    with mp.load(folder, backend="mlx", dtype="float32") as model:
        assert nmse(model.logits(tokens), expected) <= 1e-4

"""Scalings of RoPE: logits beside transformers' models with the same weights, whatever the chunks."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hf_models import has_class, hf_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peers.test_reference import ours

from mistral_portable.config import LongRope, MistralConfig
from mistral_portable.graph import build
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing.scenario import one_shot
from mistral_portable.testing.strategies import configs, rope_scalings, scenarios

# Ministral 3's class alone has growing queries, and they have YaRN's original length. transformers divides by
# head_dim - 2 for a dynamic scaling.
PLAIN = (
    configs(max_layers=2)
    .map(lambda config: replace(config, rope_scaling=None, query_scale=None))
    .filter(lambda config: has_class(config) and config.head_dim > 2)
)


@settings(max_examples=40)  # four kinds
@given(config=PLAIN, seed=st.integers(0, 2**31), data=st.data())
def test_logits_equal_transformers(config: MistralConfig, seed: int, data: st.DataObject) -> None:
    """LongRoPE with short factors here: texts end within the original length."""
    original = data.draw(st.integers(4, 16))
    scaling = data.draw(rope_scalings(original, config.head_dim // 2))
    if isinstance(scaling, LongRope):
        scaling = replace(scaling, original_max_position_embeddings=config.max_position_embeddings)
    config = replace(config, rope_scaling=scaling)
    model: Any = hf_model(config, seed)
    scenario = data.draw(scenarios(config.vocab_size))
    outputs = ours(config, seed, select_rows(build(config), "logits"), scenario)
    for sequence, text in scenario.texts.items():
        with torch.no_grad():
            expected = model(torch.tensor([text]), use_cache=False).logits[0].numpy()
        assert np.abs(outputs[sequence]["logits"] - expected).max() <= 1e-4 * np.abs(expected).max()


@settings(max_examples=20)  # one kind
@given(config=PLAIN, seed=st.integers(0, 2**31), data=st.data())
def test_long_factors_equal_transformers(config: MistralConfig, seed: int, data: st.DataObject) -> None:
    """A text that is longer than the original length, which transformers reads at once."""
    factors = st.lists(st.sampled_from([1.0, 1.5, 8.0]), min_size=config.head_dim // 2, max_size=config.head_dim // 2)
    short, long = (tuple(data.draw(factors)) for _ in range(2))
    config = replace(config, rope_scaling=LongRope(short, long, 8, data.draw(st.sampled_from([1.0, 1.25]))))
    text = data.draw(st.lists(st.integers(0, config.vocab_size - 1), min_size=9, max_size=33))
    outputs = ours(config, seed, build(config), one_shot(text))[0]
    with torch.no_grad():
        expected = hf_model(config, seed)(torch.tensor([text]), use_cache=False).logits[0].numpy()
    assert np.abs(outputs["logits"] - expected).max() <= 1e-4 * np.abs(expected).max()

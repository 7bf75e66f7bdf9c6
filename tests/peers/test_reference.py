"""The oracle has an oracle: transformers' causal LMs, float32, eager, uncached and with their whole masks."""

from typing import Any

import numpy as np
import pytest
import torch
from hf_models import has_class, hf_model
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.cache import CacheSpec
from mistral_portable.config import MistralConfig
from mistral_portable.graph import Graph, build
from mistral_portable.graph.passes import expose_attention_weights, expose_hidden_states, select_rows
from mistral_portable.reference import BACKEND
from mistral_portable.testing import random_weights
from mistral_portable.testing.scenario import Outputs, Scenario, one_shot, run
from mistral_portable.testing.strategies import configs, scenarios

# Configs without a class in transformers are checked against one-shot runs of the reference itself (tests/conformance).
KNOWN = configs(max_layers=2).filter(has_class)


def ours(config: MistralConfig, seed: int, graph: Graph, scenario: Scenario) -> dict[int, Outputs]:
    """The scenario on the float32 reference with the peer's weights."""
    weights = random_weights(build(config), seed)
    spec = CacheSpec.from_config(
        config,
        max_context=scenario.max_context,
        page_size=BACKEND.capabilities.page_size,
        max_chunk=scenario.max_chunk,
        max_lanes=len(scenario.texts),
    )
    return run(prepare(BACKEND, graph, weights, spec, ExecutorOptions(dtype="float32")), graph, spec, scenario)


@given(config=KNOWN, seed=st.integers(0, 2**31), data=st.data())
@pytest.mark.parametrize("kind", ["one_shot", "chunked", "token_by_token", "ragged", "rollback"])
def test_logits_equal_transformers(kind: str, config: MistralConfig, seed: int, data: st.DataObject) -> None:
    model: Any = hf_model(config, seed)
    drawn = {
        "one_shot": scenarios(config.vocab_size, chunks=(64,)),
        "chunked": scenarios(config.vocab_size),
        "token_by_token": scenarios(config.vocab_size, chunks=(1,)),
        "ragged": scenarios(config.vocab_size, sequences=3),
        "rollback": scenarios(config.vocab_size, rollback=True),
    }
    scenario = data.draw(drawn[kind])
    outputs = ours(config, seed, select_rows(build(config), "logits"), scenario)
    for sequence, text in scenario.texts.items():
        with torch.no_grad():
            expected = model(torch.tensor([text]), use_cache=False).logits[0].numpy()
        # The issue's figure: 1e-4 of the logits' scale.
        assert np.abs(outputs[sequence]["logits"] - expected).max() <= 1e-4 * np.abs(expected).max()


@given(config=KNOWN, seed=st.integers(0, 2**31), data=st.data())
def test_hidden_states_and_attention_weights_equal_transformers(
    config: MistralConfig, seed: int, data: st.DataObject
) -> None:
    model: Any = hf_model(config, seed)
    text = data.draw(st.lists(st.integers(0, config.vocab_size - 1), min_size=1, max_size=33))
    graph = expose_attention_weights(expose_hidden_states(build(config)))
    outputs = ours(config, seed, graph, one_shot(text))[0]
    with torch.no_grad():
        expected = model(torch.tensor([text]), use_cache=False, output_hidden_states=True, output_attentions=True)
    for index, states in enumerate(expected.hidden_states):
        values = states[0].numpy()
        assert np.abs(outputs[f"hidden_states.{index}"] - values).max() <= 1e-4 * np.abs(values).max()
    for layer, weights in enumerate(expected.attentions):
        values = weights[0].numpy().transpose(1, 0, 2)  # [heads, q, k] -> [q, heads, k]
        assert np.abs(outputs[f"attentions.{layer}"] - values).max() <= 1e-4

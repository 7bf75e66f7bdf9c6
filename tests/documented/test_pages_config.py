"""The pages' MistralConfig: its documented defaults, and the example of a model from a config alone."""

import numpy as np
import pytest
import transformers
from documented.pages import EXECUTORS

from mistral_portable.transformers import MistralConfig, MistralModel

DOCUMENTED = {  # v4.56
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,  # None there: hidden_size // num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "attention_dropout": 0.0,
}


def test_the_defaults_are_the_documented_ones() -> None:
    configuration = MistralConfig()
    assert {name: getattr(configuration, name) for name in DOCUMENTED} == DOCUMENTED


def test_the_defaults_are_those_of_transformers() -> None:
    theirs = transformers.MistralConfig()
    same = DOCUMENTED.keys() - {"head_dim", "rope_theta"}  # which they fill in, and keep in a dictionary
    assert {name: getattr(theirs, name) for name in same} == {name: DOCUMENTED[name] for name in same}


@pytest.mark.parametrize("backend", EXECUTORS)
def test_a_model_from_a_config(backend: str) -> None:
    # Initializing a Mistral 7B style configuration: in small, as this one's weights would take 27 GB
    configuration = MistralConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2)

    # Initializing a model from the Mistral 7B style configuration
    model = MistralModel(configuration, backend=backend)

    # Accessing the model configuration
    configuration = model.config
    assert (configuration.num_hidden_layers, configuration.head_dim, configuration.sliding_window) == (2, 2, 4096)
    states = model(np.array([[1, 2, 3]])).last_hidden_state
    assert states.shape == (1, 3, 64)
    assert np.isfinite(states).all()

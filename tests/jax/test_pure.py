"""The pure function beside the program of the same graph, for drawn configs of all families."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_jax import BACKEND

from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BackendError
from mistral_portable.graph import build, verify
from mistral_portable.graph.passes import accept_embeddings, expose_attention_weights
from mistral_portable.testing import random_weights
from mistral_portable.testing.strategies import configs


@settings(max_examples=3)
@given(config=configs(max_layers=2), seed=st.integers(0, 2**31), cut=st.sampled_from([1, 6, 11]))
def test_rows_with_padding_anywhere_are_sequences(config: MistralConfig, seed: int, cut: int) -> None:
    """Two calls, cut at the middle or beside a single column; equal within 1e-4, as the orders of summation in float32
    differ."""
    graph = verify(expose_attention_weights(build(config)))
    tensors = random_weights(graph, seed)
    random = np.random.default_rng(seed)
    ids, kept = random.integers(0, config.vocab_size, (2, 12)), random.integers(0, 2, (2, 12))

    function = BACKEND.pure(graph, "float32")
    weights, cache = function.weights(tensors), function.init_cache(2, 12)
    first, cache = function(weights, cache, ids[:, :cut], kept)
    second, _ = function(weights, cache, ids[:, cut:], kept[:, cut:])
    logits = np.concatenate([first["logits"], second["logits"]], axis=1)
    shown = {name: np.concatenate([first[name], second[name]], axis=2) for name in first if name != "logits"}

    spec = CacheSpec.from_config(config, max_context=12, page_size=5, max_chunk=12)
    program, manager = prepare(BACKEND, graph, tensors, spec, ExecutorOptions()), CacheManager(spec)
    for row in range(2):
        columns = np.flatnonzero(kept[row])
        assert not logits[row, kept[row] == 0].any()
        if not len(columns):
            continue
        lane = manager.open()
        plan = manager.plan([Chunk(lane, ids[row, columns].tolist(), list(range(len(columns))))])
        expected = dict(program.step(plan))
        manager.close(lane)
        np.testing.assert_allclose(logits[row, columns], expected.pop("logits"), rtol=1e-4, atol=1e-4)
        for name, wanted in expected.items():
            found = shown[name][row][:, columns].swapaxes(0, 1)
            np.testing.assert_allclose(found[:, :, columns], wanted, rtol=1e-4, atol=1e-4)
            assert not np.delete(found, columns, axis=2).any()


def test_nothing_is_changed() -> None:
    """The same cache may be given twice."""
    config = MistralConfig(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    function = BACKEND.pure(verify(build(config)), "float32")
    weights, cache = function.weights(random_weights(build(config), 1)), function.init_cache(1, 4)
    tokens, kept = np.array([[1, 2, 3]]), np.ones((1, 3))
    once, _ = function(weights, cache, tokens, kept)
    again, _ = function(weights, cache, tokens, kept)
    np.testing.assert_array_equal(once["logits"], again["logits"])


def test_graphs_that_take_more_than_tokens_are_refused() -> None:
    graph = verify(accept_embeddings(build(MistralConfig())))
    with pytest.raises(BackendError, match="takes token ids only, and the graph needs inputs_embeds, embedded_rows"):
        BACKEND.pure(graph, "float32")

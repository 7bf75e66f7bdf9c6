"""The pass that adds adapters, in float64 on the reference executor, beside models whose weights have been changed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.engine.core import Core
from mistral_portable.errors import GraphError, InputError
from mistral_portable.graph import Graph, build, verify
from mistral_portable.graph.adapters import Changed, add_adapters, lora_a, lora_b, replacement, weight_name
from mistral_portable.graph.passes import accept_embeddings, expose_hidden_states, fuse_linears, select_rows
from mistral_portable.reference import BACKEND
from mistral_portable.testing import random_weights
from mistral_portable.testing.strategies import configs
from mistral_portable.weights import DenseTensor, Tensor

Weights = Mapping[str, Tensor]
TABLE = "model.embed_tokens.weight"


def core_of(graph: Graph, config: MistralConfig, weights: Weights) -> Core:
    spec = CacheSpec.from_config(config, max_context=64, max_chunk=64, max_lanes=4, page_size=16)
    program = prepare(BACKEND, verify(graph), weights, spec, ExecutorOptions(dtype="float64"))
    return Core(program, CacheManager(spec), given=graph.given)


def logits(graph: Graph, config: MistralConfig, weights: Weights, tokens: list[int], *adapters: float) -> NDArray[Any]:
    core = core_of(graph, config, weights)
    with core.lane() as lane:
        chunk = Chunk(lane, tokens, range(len(tokens)), adapters=adapters)
        return np.asarray(core.run([chunk])[1]["logits"])


@st.composite
def adapted(draw: st.DrawFn) -> tuple[MistralConfig, Mapping[str, Changed]]:
    """A model without experts, and what two adapters do to some of its weights."""
    config = draw(configs(max_layers=2).filter(lambda config: not config.num_local_experts))
    plain = build(config)
    names = [name for node in plain.nodes if (name := weight_name(plain, node))]

    def change() -> Changed:
        whole = draw(st.sampled_from([(), (), (0,), (1,), (0, 1)]))
        ranks = draw(st.tuples(st.integers(0, 3), st.integers(0 if whole else 1, 5)))
        return Changed(ranks, (0.5, -1.25), whole)

    return config, {name: change() for name in draw(st.sets(st.sampled_from(names), min_size=1, max_size=4))}


def merged(weights: Weights, plain: Graph, changes: Mapping[str, Changed], factors: tuple[float, ...]) -> Weights:
    """The plain graph's weights as adapters with these weights change them; tied ones must change alike."""
    out = dict(weights)
    tables = {node.inputs[1] for node in plain.nodes if node.op == "embedding"}
    for name, change in changes.items():
        value = weights[name].numpy(np.float64)
        base = value * (1 - sum(factors[index] for index in change.whole))
        for index in change.whole:
            base = base + factors[index] * weights[replacement(name, index)].numpy(np.float64)
        if sum(change.ranks):
            a, b = (weights[part(name)].numpy(np.float64) for part in (lora_a, lora_b))
            scale = np.repeat(np.array(change.scales) * factors, change.ranks)
            base = base + ((a * scale) @ b.T if name in tables else (b * scale) @ a)
        out[name] = DenseTensor(name, "float64", base)
    return out


@given(adapted(), st.data())
def test_adapters_are_what_changed_weights_are(
    drawn: tuple[MistralConfig, Mapping[str, Changed]], data: st.DataObject
) -> None:
    config, changes = drawn
    plain = build(config)
    graph, constants = add_adapters(plain, changes)
    weights: dict[str, Tensor] = dict(random_weights(graph, data.draw(st.integers(0, 999))))
    weights |= {name: DenseTensor(name, "float32", array) for name, array in constants.items()}
    tokens = data.draw(st.lists(st.integers(0, config.vocab_size - 1), min_size=1, max_size=20))
    factors = data.draw(st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.5, -2.0)]))
    np.testing.assert_array_equal(  # 0 times a change is 0
        logits(graph, config, weights, tokens), logits(plain, config, weights, tokens)
    )
    if not (config.tie_word_embeddings and {TABLE, "lm_head.weight"} & changes.keys()):
        expected = logits(plain, config, merged(weights, plain, changes, factors), tokens)
        found = logits(graph, config, weights, tokens, *factors)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)  # both in float64
    accepting, _ = add_adapters(accept_embeddings(plain), changes)
    rows = select_rows(expose_hidden_states(fuse_linears(accepting)), "logits")
    again = logits(rows, config, weights, tokens, *factors)
    np.testing.assert_allclose(again, logits(graph, config, weights, tokens, *factors), rtol=1e-9, atol=1e-9)


def test_tied_tables_change_apart() -> None:
    """An adapter of the logits leaves the embedding alone, and the other way round."""
    config = MistralConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, tie_word_embeddings=True,
    )  # fmt: skip
    plain = build(config)
    weights = dict(random_weights(plain, 0))
    random = np.random.default_rng(1)
    other = DenseTensor("other", "float32", random.standard_normal((11, 8)).astype(np.float32))
    for name, module in (("lm_head.weight", "lm_head"), (TABLE, "model.embed_tokens")):
        graph, constants = add_adapters(plain, {name: Changed((0,), (0.0,), whole=(0,))})
        own = {name: DenseTensor(name, "float32", array) for name, array in constants.items()}
        own[f"{module}.adapters.0.weight"] = other
        found = logits(graph, config, {**weights, **own}, [1, 2, 3], 1.0)
        untied = build(MistralConfig(**{**config.to_dict(), "tie_word_embeddings": False}))
        changed = {**weights, "lm_head.weight": weights[TABLE], name: other}
        np.testing.assert_allclose(found, logits(untied, config, changed, [1, 2, 3]), rtol=1e-9, atol=1e-9)


def test_a_weight_that_nobody_reads_is_refused() -> None:
    with pytest.raises(GraphError, match=r"no linear and no embedding reads model\.norm\.weight"):
        add_adapters(build(MistralConfig(num_hidden_layers=1)), {"model.norm.weight": Changed((1,), (1.0,))})


def test_a_program_without_adapters_refuses_them() -> None:
    config = MistralConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    graph = build(config)
    with pytest.raises(InputError, match="this program has no adapters"):
        logits(graph, config, random_weights(graph, 0), [1], 1.0)

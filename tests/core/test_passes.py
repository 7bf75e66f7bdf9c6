"""Passes: pure, verified, and the same model before and after, in float64 on the reference executor."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions, Program, prepare
from mistral_portable.cache import CacheManager, CacheSpec, Chunk, visible
from mistral_portable.config import MistralConfig
from mistral_portable.errors import GraphError
from mistral_portable.graph import Graph, build, infer_shapes, verify
from mistral_portable.graph.build import HEADS
from mistral_portable.graph.passes import (
    drop_dead_nodes,
    expose_attention_weights,
    expose_hidden_states,
    fuse_linears,
    select_rows,
)
from mistral_portable.reference import BACKEND
from mistral_portable.testing import Scenario, random_weights, run
from mistral_portable.testing.strategies import configs, scenarios

Outputs = dict[int, dict[str, NDArray[Any]]]

PASSES: dict[str, Callable[[Graph], Graph]] = {
    "drop_dead_nodes": drop_dead_nodes,
    "fuse_linears": fuse_linears,
    "expose_hidden_states": expose_hidden_states,
    "expose_attention_weights": expose_attention_weights,
    "select_rows": lambda graph: select_rows(graph, *graph.outputs),
    "all, rows last": lambda graph: select_rows(
        fuse_linears(expose_attention_weights(expose_hidden_states(graph))), *graph.outputs
    ),
    "all, rows first": lambda graph: fuse_linears(
        select_rows(expose_hidden_states(expose_attention_weights(graph)), *graph.outputs)
    ),
}


def prepared(graph: Graph, config: MistralConfig, **sizes: int) -> tuple[Program, CacheSpec]:
    """A float64 program; weights depend on the names of the graph's head and layers alone."""
    spec = CacheSpec.from_config(config, page_size=BACKEND.capabilities.page_size, **sizes)
    heads = [build(config, head=head) for head in HEADS]
    weights = {name: weight for plain in heads for name, weight in random_weights(plain, 0).items()}
    return prepare(BACKEND, verify(graph), weights, spec, ExecutorOptions(dtype="float64")), spec


def outputs_of(graph: Graph, config: MistralConfig, scenario: Scenario) -> Outputs:
    sizes = {"max_context": scenario.max_context, "max_chunk": scenario.max_chunk, "max_lanes": len(scenario.texts)}
    program, spec = prepared(graph, config, **sizes)
    return run(program, graph, spec, scenario)


@st.composite
def models(draw: st.DrawFn) -> tuple[MistralConfig, Graph, Scenario]:
    config = draw(configs(max_layers=2))
    graph = build(config, head=draw(st.sampled_from(HEADS)))
    return config, graph, draw(scenarios(config.vocab_size, sequences=2, rollback=True))


@given(models())
def test_passes_keep_the_meaning(model: tuple[MistralConfig, Graph, Scenario]) -> None:
    config, graph, scenario = model
    plain = outputs_of(graph, config, scenario)
    for name, rewrite in PASSES.items():
        rewritten = outputs_of(rewrite(graph), config, scenario)
        for sequence, outputs in plain.items():
            for output, expected in outputs.items():
                atol = 1e-12 * np.max(np.abs(expected))
                np.testing.assert_allclose(rewritten[sequence][output], expected, rtol=0, atol=atol, err_msg=name)


@given(configs())
def test_passes_are_pure_and_settle(config: MistralConfig) -> None:
    for name, rewrite in PASSES.items():
        graph = build(config)
        verify(rewrite(graph))
        assert graph == build(config)
        assert rewrite(graph) == rewrite(graph)
        if name in ("drop_dead_nodes", "fuse_linears", "expose_hidden_states"):
            assert rewrite(rewrite(graph)) == rewrite(graph)


@given(configs())
def test_fused_linears_are_one_per_value_read(config: MistralConfig) -> None:
    graph = fuse_linears(build(config))
    linears = [node for node in graph.nodes if node.op == "linear"]
    each = 3 if config.num_local_experts else 4  # q+k+v, o; the experts' scores, or gate+up, down
    assert len(linears) == each * config.num_hidden_layers + 1  # and the head
    fused = graph.parameters[linears[0].inputs[1]]
    parts = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    assert fused.parts == tuple(parts)
    assert fused.shape[0] == sum(build(config).parameters[part].shape[0] for part in parts)
    assert not set(parts) & set(graph.parameters)


def test_a_backend_may_decline_to_fuse() -> None:
    graph = build(MistralConfig(num_hidden_layers=1))
    keys_apart = fuse_linears(graph, lambda parameter: "k_proj" in parameter.name)
    names = {node.name for node in keys_apart.nodes if node.op == "linear"}
    assert {"layers.0.gate+layers.0.up", "layers.0.q+layers.0.v", "layers.0.k"} <= names


def test_linears_with_a_bias_stay() -> None:
    graph = build(MistralConfig(num_hidden_layers=1), head="question_answering")
    assert fuse_linears(graph).nodes[-1] == graph.nodes[-1]


def test_dead_nodes_parameters_and_taps_go() -> None:
    graph = build(MistralConfig(num_hidden_layers=2))
    early = drop_dead_nodes(Graph(graph.parameters, graph.nodes, {"x": graph.taps["hidden_states.1"]}, graph.taps))
    assert early.nodes[-1].name == "layers.0.output"
    assert all(name.startswith(("model.embed", "model.layers.0.")) for name in early.parameters)
    assert set(early.taps) == {"hidden_states.0", "hidden_states.1"}
    assert drop_dead_nodes(graph) == graph


@given(configs())
def test_rows_are_taken_right_behind_the_last_attention(config: MistralConfig) -> None:
    last = config.num_hidden_layers - 1
    graph = select_rows(build(config), "logits")
    taken = {node.inputs[0] for node in graph.nodes if node.op == "take_rows"}
    assert taken == {f"layers.{last}.attention", f"layers.{last - 1}.output" if last else "embedding"}
    shapes = infer_shapes(graph)
    names = [node.name for node in graph.nodes]
    behind = names[names.index(f"layers.{last}.attention") + 1 :]
    assert {shapes[name][0] for name in behind} == {"R"}


def test_select_rows_refuses_unknown_outputs_and_a_second_time() -> None:
    graph = select_rows(build(MistralConfig(num_hidden_layers=1)), "logits")
    with pytest.raises(GraphError, match="'loss' is unknown: the graph has logits"):
        select_rows(graph, "loss")
    with pytest.raises(GraphError, match="already"):
        verify(select_rows(graph, "logits"))


@given(configs(), st.data())
def test_selected_rows_are_the_rows_of_all(config: MistralConfig, data: st.DataObject) -> None:
    """Also none (R = 0), which must still fill the cache for the next step."""
    sizes = {"max_context": 24, "max_chunk": 6, "max_lanes": 2}
    (every, spec), (some, _) = (
        prepared(graph, config, **sizes) for graph in (build(config), select_rows(build(config), "logits"))
    )
    manager = CacheManager(spec)
    lanes = [manager.open(), manager.open()]
    for _ in range(4):
        chunks = []
        for lane in lanes:
            tokens = data.draw(st.lists(st.integers(0, config.vocab_size - 1), min_size=1, max_size=6))
            chunks.append(Chunk(lane, tokens, sorted(data.draw(st.sets(st.integers(0, len(tokens) - 1), max_size=2)))))
        plan = manager.plan(chunks)
        expected = every.step(plan)["logits"][plan.logit_rows]
        logits = some.step(plan)["logits"]
        assert logits.shape == (len(plan.logit_rows), config.vocab_size)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12 * np.max(np.abs(expected), initial=1))


@given(model=models())
def test_hidden_states_run_from_the_embedding_to_the_normed_end(model: tuple[MistralConfig, Graph, Scenario]) -> None:
    config, _, scenario = model
    graph = expose_hidden_states(build(config, head="none"))
    depth = config.num_hidden_layers
    assert set(graph.outputs) == {"last_hidden_state", *(f"hidden_states.{i}" for i in range(depth + 1))}
    table = random_weights(graph, 0)["model.embed_tokens.weight"].numpy(np.float64)
    for sequence, outputs in outputs_of(graph, config, scenario).items():
        np.testing.assert_array_equal(outputs["hidden_states.0"], table[list(scenario.texts[sequence])])
        np.testing.assert_array_equal(outputs[f"hidden_states.{depth}"], outputs["last_hidden_state"])


@given(configs(), st.data())
def test_attention_weights_have_a_column_per_position_from_first_on(config: MistralConfig, data: st.DataObject) -> None:
    graph = expose_attention_weights(build(config))
    program, spec = prepared(graph, config, max_context=30, max_chunk=6, max_lanes=2)
    manager = CacheManager(spec)
    lanes = [manager.open(), manager.open()]
    for _ in range(5):
        sizes = [data.draw(st.integers(1, 6)) for _ in lanes]
        plan = manager.plan([Chunk(lane, [1] * size) for lane, size in zip(lanes, sizes, strict=True)])
        outputs = program.step(plan)
        for layer, window in enumerate(config.layer_windows):
            weights = outputs[f"attentions.{layer}"]
            first = plan.groups[spec.group_of(layer)].first
            ends = np.array([manager.length(lane) for lane in lanes])
            assert weights.shape == (sum(sizes), config.num_attention_heads, max(ends - first))
            np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-12)
            keys = np.repeat(first, sizes)[:, None] + np.arange(weights.shape[-1])
            seen = visible(plan.positions[:, None], keys, window)
            np.testing.assert_array_equal(weights > 0, np.broadcast_to(seen[:, None, :], weights.shape))


@given(model=models())
def test_tied_logits_are_products_with_the_embedding(model: tuple[MistralConfig, Graph, Scenario]) -> None:
    config, _, scenario = replace(model[0], tie_word_embeddings=True), *model[1:]
    hidden = outputs_of(build(config, head="none"), config, scenario)
    table = random_weights(build(config), 0)["model.embed_tokens.weight"].numpy(np.float64)
    for sequence, outputs in outputs_of(build(config), config, scenario).items():
        expected = hidden[sequence]["last_hidden_state"] @ table.T
        np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=1e-12 * np.max(np.abs(expected)))

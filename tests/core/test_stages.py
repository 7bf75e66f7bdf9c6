"""The pass that cuts graphs into stages."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.config import MistralConfig
from mistral_portable.errors import GraphError
from mistral_portable.graph import PLAN_INPUTS, Graph, build, infer_shapes
from mistral_portable.graph.adapters import ADAPTERS, Changed, add_adapters
from mistral_portable.graph.passes import (
    accept_embeddings,
    expose_attention_weights,
    expose_embedding,
    expose_hidden_states,
    select_rows,
)
from mistral_portable.graph.stages import cut, even_cuts, layers_of
from mistral_portable.testing.strategies import configs

CONFIG = MistralConfig(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    sliding_window=3,
)


def causal_lm(config: MistralConfig = CONFIG) -> Graph:
    return select_rows(build(config), "logits")


def test_hidden_states_pass_from_one_stage_to_the_next() -> None:
    first, second, third = cut(causal_lm(), (1, 3))
    assert [layers_of(stage) for stage in (first, second, third)] == [(0,), (1, 2), (3,)]
    assert (list(first.outputs), list(first.given)) == (["layers.0.output"], [])
    assert (list(second.outputs), second.given) == (["layers.2.output"], {"layers.0.output": ("T", 16)})
    assert (list(third.outputs), third.given) == (["logits"], {"layers.2.output": ("T", 16)})


@given(config=configs(max_layers=4), data=st.data())
def test_stages_have_each_node_and_parameter_once(config: MistralConfig, data: st.DataObject) -> None:
    """Only the embedding table may be in two stages."""
    layers = range(1, config.num_hidden_layers)
    cuts = sorted(data.draw(st.sets(st.sampled_from(layers)))) if layers else []
    graph = causal_lm(config)
    stages = cut(graph, cuts)
    assert [node for stage in stages for node in stage.nodes] == list(graph.nodes)
    parameters = [name for stage in stages for name in stage.parameters if name != "model.embed_tokens.weight"]
    assert sorted(parameters) == sorted(set(graph.parameters) - {"model.embed_tokens.weight"})
    shapes = infer_shapes(graph)
    for stage in stages:
        assert infer_shapes(stage) == {name: shapes[name] for name in infer_shapes(stage)}


def test_rows_are_selected_in_the_last_stage_alone() -> None:
    first, second = cut(causal_lm(), (2,))
    assert not any(node.op == "take_rows" for node in first.nodes)
    assert infer_shapes(second)["norm"] == ("R", 16)


def test_tied_table_is_in_the_first_and_in_the_last_stage() -> None:
    first, second, third = cut(causal_lm(MistralConfig(num_hidden_layers=3, tie_word_embeddings=True)), (1, 2))
    table = "model.embed_tokens.weight"
    assert [table in stage.parameters for stage in (first, second, third)] == [True, False, True]


def test_inputs_belong_to_the_stages_that_read_them() -> None:
    embeds = accept_embeddings(build(CONFIG))
    changed = {f"model.layers.{layer}.mlp.up_proj.weight": Changed((2,), (1.0,)) for layer in (0, 3)}
    adapted, _ = add_adapters(embeds, changed)
    stages = cut(select_rows(adapted, "logits"), (1, 2))
    assert [ADAPTERS in stage.inputs for stage in stages] == [True, False, True]
    assert ["inputs_embeds" in stage.inputs for stage in stages] == [True, False, False]
    assert all(stage.inputs.keys() >= PLAN_INPUTS.keys() for stage in stages)


def test_outputs_and_taps_belong_to_the_stage_that_computes_them() -> None:
    graph = expose_attention_weights(expose_hidden_states(expose_embedding(build(CONFIG))))
    first, second = cut(graph, (2,))
    assert list(first.taps) == [f"hidden_states.{layer}" for layer in range(3)]
    assert list(second.taps) == ["hidden_states.3", "hidden_states.4"]
    assert set(first.outputs) == {*first.taps, "attentions.0", "attentions.1", "layers.1.output"}
    assert set(second.outputs) == {*second.taps, "attentions.2", "attentions.3", "embedding", "logits"}


def test_no_cut_gives_the_graph_itself() -> None:
    graph = causal_lm()
    assert cut(graph, ()) == (graph,)


@pytest.mark.parametrize("cuts", [(0,), (4,), (2, 2), (3, 1), (-1,)])
def test_other_cuts_are_refused(cuts: tuple[int, ...]) -> None:
    with pytest.raises(GraphError, match="must ascend from 1 to 3"):
        cut(causal_lm(), cuts)


@given(data=st.data(), layers=st.integers(1, 7))
def test_even_cuts_are_the_best_of_all(data: st.DataObject, layers: int) -> None:
    """Compared with all others."""
    graph = causal_lm(MistralConfig(num_hidden_layers=layers))
    nbytes = {name: data.draw(st.integers(0, 9)) for name in graph.tensors}
    count = data.draw(st.integers(1, layers))

    def largest(cuts: tuple[int, ...]) -> int:
        return max(sum(nbytes[part] for part in stage.tensors) for stage in cut(graph, cuts))

    def bound(cuts: tuple[int, ...]) -> int:  # a table that two stages read counts in each layer that reads it
        sizes = [sum(nbytes[part] for part in stage.tensors) for stage in cut(graph, range(1, layers))]
        return max(sum(sizes[begin:end]) for begin, end in pairwise((0, *cuts, layers)))

    found = even_cuts(graph, count, nbytes)
    assert largest(found) <= bound(found) == min(bound(cuts) for cuts in combinations(range(1, layers), count - 1))


@pytest.mark.parametrize("stages", [0, 5])
def test_more_stages_than_layers_are_refused(stages: int) -> None:
    graph = causal_lm()
    with pytest.raises(GraphError, match=f"{stages} stages: a model of 4 layers"):
        even_cuts(graph, stages, dict.fromkeys(graph.tensors, 1))

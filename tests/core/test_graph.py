"""The graph: a closed list of ops, what `build` makes of a config, and what `verify` refuses."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given

from mistral_portable.config import MistralConfig
from mistral_portable.errors import GraphError
from mistral_portable.graph import OPS, Graph, Node, Parameter, Rotation, build, infer_shapes, verify
from mistral_portable.graph.build import HEADS
from mistral_portable.testing.strategies import configs

CONFIG = MistralConfig(
    vocab_size=40,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=(3, None),
)
GRAPH = build(CONFIG)


def changed(name: str, **changes: Any) -> Graph:
    """GRAPH with other fields in one node; `attributes` are added to its own, and those that are "drop" removed."""
    nodes = {node.name: node for node in GRAPH.nodes}
    attributes = {**nodes[name].attributes, **changes.pop("attributes", {})}
    kept = {key: value for key, value in attributes.items() if value != "drop"}
    nodes[name] = replace(nodes[name], **changes, attributes=kept)
    return replace(GRAPH, nodes=tuple(nodes.values()))


def with_node(*args: Any) -> Graph:
    return replace(GRAPH, nodes=(*GRAPH.nodes, Node(*args)))


def chosen(top_k: int) -> Graph:
    """A model of two experts, of which a node of the first layer wants `top_k`."""
    graph = build(replace(CONFIG, num_local_experts=2, num_experts_per_tok=2))
    nodes = [
        replace(node, attributes={"top_k": top_k}) if node.name == "layers.0.experts" else node for node in graph.nodes
    ]
    return replace(graph, nodes=tuple(nodes))


def test_the_list_of_ops_is_closed_and_documented() -> None:
    assert set(OPS) == {
        "add",
        "attention",
        "attention_weights",
        "embedding",
        "linear",
        "moe",
        "replace_rows",
        "rms_norm",
        "rope",
        "silu_mul",
        "take_columns",
        "take_rows",
        "weigh",
    }
    for name, op in OPS.items():
        assert op.name == name
        assert op.summary
        assert op.arity
        assert "->" in (op.shape.__doc__ or "")


@given(configs())
def test_every_head_verifies_and_has_the_documented_output(config: MistralConfig) -> None:
    outputs: dict[str, tuple[str, int]] = {
        "none": ("last_hidden_state", config.hidden_size),
        "causal_lm": ("logits", config.vocab_size),
        "sequence_classification": ("logits", 3),
        "token_classification": ("logits", 3),
        "question_answering": ("logits", 2),
    }
    assert set(HEADS) == set(outputs)
    for head, (name, columns) in outputs.items():
        graph = verify(build(config, head=head, num_labels=3))
        assert {output: infer_shapes(graph)[value] for output, value in graph.outputs.items()} == {name: ("T", columns)}


@pytest.mark.parametrize(
    ("head", "parameters"),
    [
        ("none", {}),
        ("causal_lm", {"lm_head.weight": (40, 24)}),
        ("sequence_classification", {"score.weight": (3, 24)}),
        ("token_classification", {"score.weight": (3, 24), "score.bias": (3,)}),
        ("question_answering", {"qa_outputs.weight": (2, 24), "qa_outputs.bias": (2,)}),
    ],
)
def test_parameters_are_those_of_the_checkpoint(head: str, parameters: dict[str, tuple[int, ...]]) -> None:
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (24,),
        "self_attn.q_proj.weight": (32, 24),
        "self_attn.k_proj.weight": (16, 24),
        "self_attn.v_proj.weight": (16, 24),
        "self_attn.o_proj.weight": (24, 32),
        "post_attention_layernorm.weight": (24,),
        "mlp.gate_proj.weight": (32, 24),
        "mlp.up_proj.weight": (32, 24),
        "mlp.down_proj.weight": (24, 32),
    }
    expected = {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    expected |= {"model.embed_tokens.weight": (40, 24), "model.norm.weight": (24,)} | parameters
    graph = build(CONFIG, head=head, num_labels=3)
    assert {name: parameter.shape for name, parameter in graph.parameters.items()} == expected
    assert all(parameter.parts == (name,) for name, parameter in graph.parameters.items())


def test_each_layer_attends_through_its_own_window() -> None:
    attention = [node.attributes for node in GRAPH.nodes if node.op == "attention"]
    assert [(node["layer"], node["window"]) for node in attention] == [(0, 3), (1, None)]
    assert {node["scale"] for node in attention} == {8**-0.5}


def test_tied_weights_are_one_parameter() -> None:
    graph = build(replace(CONFIG, tie_word_embeddings=True))
    assert "lm_head.weight" not in graph.parameters
    assert graph.nodes[-1].inputs == ("norm", "model.embed_tokens.weight")


def test_build_refuses_unknown_heads_and_no_labels() -> None:
    with pytest.raises(GraphError, match="'masked_lm' is unknown"):
        build(CONFIG, head="masked_lm")
    with pytest.raises(GraphError, match="num_labels=0"):
        build(CONFIG, head="token_classification", num_labels=0)


def test_graphs_are_immutable() -> None:
    node: Any = GRAPH.nodes[1]
    graph: Any = GRAPH
    with pytest.raises(FrozenInstanceError):
        graph.nodes = ()
    with pytest.raises(FrozenInstanceError):
        node.op = "add"
    for mapping in (graph.parameters, graph.outputs, graph.taps, node.attributes):
        with pytest.raises(TypeError):
            mapping["new"] = 1
    outputs = dict(GRAPH.outputs)
    copy = replace(GRAPH, outputs=outputs)
    outputs["new"] = "norm"
    assert copy == GRAPH


TABLE, NORM = "model.embed_tokens.weight", "model.norm.weight"
EXPERTS = tuple(f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
BROKEN = {
    "unknown op": ("norm", changed("norm", op="layer_norm")),
    "too few inputs": ("norm", changed("norm", inputs=("layers.1.output",))),
    "too many inputs": ("norm", changed("norm", inputs=("layers.1.output", NORM, NORM))),
    "missing attribute": ("norm", changed("norm", attributes={"eps": "drop"})),
    "surplus attribute": ("norm", changed("norm", attributes={"bias": 1})),
    "undefined input": ("norm", changed("norm", inputs=("layers.2.output", NORM))),
    "input defined later": ("layers.0.q", changed("layers.0.q", inputs=("logits", "lm_head.weight"))),
    "input of itself": ("layers.0.residual", changed("layers.0.residual", inputs=("embedding", "layers.0.residual"))),
    "name of a node": ("norm", with_node("norm", "add", ("logits", "logits"), {})),
    "name of a parameter": (TABLE, with_node(TABLE, "add", ("logits", "logits"), {})),
    "name of an input": ("tokens", with_node("tokens", "add", ("logits", "logits"), {})),
    "embedding in a vector": ("embedding", changed("embedding", inputs=("tokens", NORM))),
    "norm of another size": ("norm", changed("norm", inputs=("layers.1.silu_mul", NORM))),
    "eps of zero": ("norm", changed("norm", attributes={"eps": 0.0})),
    "weight of another size": ("layers.0.o", changed("layers.0.o", inputs=("layers.0.attention", "lm_head.weight"))),
    "bias of another size": ("logits", changed("logits", inputs=("norm", "lm_head.weight", NORM))),
    "rope over tokens of no position": (
        "layers.0.q_rope",
        changed("layers.0.q_rope", inputs=("layers.0.q", "logit_rows")),
    ),
    "rope of half heads": (
        "layers.0.q_rope",
        changed("layers.0.q_rope", attributes={"rotation": Rotation((1.0,) * 5)}),
    ),
    "rope of no pairs": ("layers.0.q_rope", changed("layers.0.q_rope", attributes={"rotation": Rotation(())})),
    "rope of no rotation": ("layers.0.q_rope", changed("layers.0.q_rope", attributes={"rotation": 1e4})),
    "endless turns": (
        "layers.0.q_rope",
        changed("layers.0.q_rope", attributes={"rotation": Rotation((float("inf"),) * 4)}),
    ),
    "attention to q as k": ("layers.0.attention", changed("layers.0.attention", inputs=("layers.0.q_rope",) * 3)),
    "attention of 3 heads": (
        "layers.0.attention",
        changed("layers.0.attention", attributes={"num_attention_heads": 3}),
    ),
    "attention of no layer": ("layers.0.attention", changed("layers.0.attention", attributes={"layer": None})),
    "attention of no scale": ("layers.0.attention", changed("layers.0.attention", attributes={"scale": None})),
    "attention to 0 keys": ("layers.0.attention", changed("layers.0.attention", attributes={"window": 0})),
    "add of unlike shapes": ("layers.0.output", changed("layers.0.output", inputs=("embedding", "layers.0.up"))),
    "silu_mul of unlike shapes": ("x", with_node("x", "silu_mul", ("layers.0.up", "norm"), {})),
    "experts for a whole layer": ("x", with_node("x", "moe", ("norm", "layers.0.q", *EXPERTS), {"top_k": 1})),
    "experts whose down is up": (
        "x",
        with_node("x", "moe", ("norm", "norm", *EXPERTS[:2], EXPERTS[0]), {"top_k": 1}),
    ),
    "no expert": ("layers.0.experts", chosen(0)),
    "more experts than there are": ("layers.0.experts", chosen(3)),
    "columns beyond the last": ("x", with_node("x", "take_columns", ("norm",), {"start": 8, "stop": 25})),
    "no columns": ("x", with_node("x", "take_columns", ("norm",), {"start": 8, "stop": 8})),
    "rows by a table": ("x", with_node("x", "take_rows", ("norm", TABLE), {})),
    "no output": ("no output", replace(GRAPH, outputs={})),
    "undefined output": ("output 'logits'", replace(GRAPH, outputs={"logits": "nothing"})),
    "undefined tap": ("tap 'here'", replace(GRAPH, taps={"here": "nothing"})),
    "parameter under another name": ("'x'", replace(GRAPH, parameters={"x": GRAPH.parameters[TABLE]})),
    "parameter without columns": (NORM, replace(GRAPH, parameters={NORM: Parameter(NORM, (24, 0), (NORM,))})),
    "parameter of no part": (NORM, replace(GRAPH, parameters={NORM: Parameter(NORM, (24,), ())})),
    "two writers of a cache": ("layer 0", changed("layers.1.attention", attributes={"layer": 0})),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_verify_names_what_is_broken(kind: str) -> None:
    name, graph = BROKEN[kind]
    with pytest.raises(GraphError) as caught:
        verify(graph)
    assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_rows_cannot_be_taken_twice() -> None:
    once = with_node("some", "take_rows", ("norm", "logit_rows"), {})
    assert infer_shapes(once)["some"] == ("R", 24)
    twice = replace(once, nodes=(*once.nodes, Node("fewer", "take_rows", ("some", "logit_rows"), {})))
    with pytest.raises(GraphError, match=r"'fewer'.*already"):
        verify(twice)

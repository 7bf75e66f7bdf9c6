"""A graph as text, word for word, and as a Mermaid diagram that Mermaid can read."""

import re

from hypothesis import given

from mistral_portable.config import MistralConfig
from mistral_portable.graph import Graph, build, to_mermaid, to_text
from mistral_portable.graph.passes import expose_attention_weights, fuse_linears, select_rows
from mistral_portable.testing.strategies import configs

CONFIG = MistralConfig(
    vocab_size=40,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    sliding_window=3,
)

TEXT = """\
input tokens [T]
input positions [T]
embedding [T, 24] = embedding(tokens, model.embed_tokens.weight)
layers.0.input_layernorm [T, 24] = rms_norm(embedding, model.layers.0.input_layernorm.weight, eps=1e-06)
layers.0.q [T, 16] = linear(layers.0.input_layernorm, model.layers.0.self_attn.q_proj.weight)
layers.0.k [T, 8] = linear(layers.0.input_layernorm, model.layers.0.self_attn.k_proj.weight)
layers.0.v [T, 8] = linear(layers.0.input_layernorm, model.layers.0.self_attn.v_proj.weight)
layers.0.q_rope [T, 16] = rope(layers.0.q, positions, rotation=1..0.01)
layers.0.k_rope [T, 8] = rope(layers.0.k, positions, rotation=1..0.01)
layers.0.attention [T, 16] = attention(layers.0.q_rope, layers.0.k_rope, layers.0.v, layer=0, \
num_attention_heads=4, num_key_value_heads=2, head_dim=4, scale=0.5, window=3)
layers.0.o [T, 24] = linear(layers.0.attention, model.layers.0.self_attn.o_proj.weight)
layers.0.residual [T, 24] = add(embedding, layers.0.o)
layers.0.post_attention_layernorm [T, 24] = rms_norm(layers.0.residual, \
model.layers.0.post_attention_layernorm.weight, eps=1e-06)
layers.0.gate [T, 32] = linear(layers.0.post_attention_layernorm, model.layers.0.mlp.gate_proj.weight)
layers.0.up [T, 32] = linear(layers.0.post_attention_layernorm, model.layers.0.mlp.up_proj.weight)
layers.0.silu_mul [T, 32] = silu_mul(layers.0.gate, layers.0.up)
layers.0.down [T, 24] = linear(layers.0.silu_mul, model.layers.0.mlp.down_proj.weight)
layers.0.output [T, 24] = add(layers.0.residual, layers.0.down)
norm [T, 24] = rms_norm(layers.0.output, model.norm.weight, eps=1e-06)
logits [T, 40] = linear(norm, lm_head.weight)
output logits = logits"""

BOX = re.compile(r'  (?P<id>\w+)(?:\["(?P<node>[^"]+)"\]|\(\["(?P<port>[^"]+)"\]\))')
EDGE = re.compile(r'  (?P<source>\w+) -->(?:\|"\[[\w, ]+\]"\|)? (?P<target>\w+)')


def test_text_of_one_layer() -> None:
    assert to_text(build(CONFIG)) == TEXT


def check_mermaid(graph: Graph) -> None:
    """A box per node, per step input and per output; an edge per value that is read; plain words as labels."""
    header, *lines = to_mermaid(graph).splitlines()
    assert header == "flowchart TD"
    boxes = [match for line in lines if (match := BOX.fullmatch(line))]
    edges = [match for line in lines if (match := EDGE.fullmatch(line))]
    assert len(boxes) + len(edges) == len(lines)
    values = [value for node in graph.nodes for value in node.inputs if value not in graph.parameters]
    steps = {value for value in values if value in graph.inputs}
    assert sum(box["node"] is not None for box in boxes) == len(graph.nodes)
    assert sum(box["port"] is not None for box in boxes) == len(steps) + len(graph.outputs)
    assert len(edges) == len(values) + len(graph.outputs)
    ids = {box["id"] for box in boxes}
    assert len(ids) == len(boxes)
    assert {edge[end] for edge in edges for end in ("source", "target")} <= ids
    assert "end" not in ids  # a keyword of Mermaid
    for box in boxes:
        assert re.fullmatch(r"[\w.,:+ \[\]]+", (box["node"] or box["port"]).replace("<br/>", " "))


@given(configs())
def test_mermaid_of_any_model(config: MistralConfig) -> None:
    graph = build(config)
    check_mermaid(graph)
    check_mermaid(select_rows(fuse_linears(expose_attention_weights(graph)), "logits"))

"""When values of a graph are freed, and the bytes that are so held at once."""

from dataclasses import replace

import pytest

from mistral_portable.config import MistralConfig
from mistral_portable.graph import Graph, build
from mistral_portable.graph.liveness import Launch, most_bytes
from mistral_portable.graph.passes import expose_hidden_states, fuse_linears, select_rows

CONFIG = MistralConfig(
    vocab_size=40,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    sliding_window=3,
)


def each(graph: Graph) -> list[Launch]:
    return [Launch((node,), (node.name,)) for node in graph.nodes]


GRAPHS = {
    "plain": build(CONFIG),
    "hidden": expose_hidden_states(build(CONFIG)),
    "rows": select_rows(build(CONFIG), "logits"),
    "fused": fuse_linears(build(CONFIG), lambda parameter: None),
}


@pytest.mark.parametrize("late", [0, 1, 5])
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_a_value_is_held_from_its_launch_to_its_last_reader(graph: Graph, late: int) -> None:
    """And one of which columns are taken to their last reader; they take nothing themselves."""
    launches = each(graph)
    ends = {value: number for number, launch in enumerate(launches) for value in (*launch.results, *launch.inputs)}
    ends |= dict.fromkeys(graph.outputs.values(), len(launches))
    begins = {launch.name: number for number, launch in enumerate(launches)}
    for node in graph.nodes:
        if node.op == "take_columns":
            del begins[node.name]
            ends[node.inputs[0]] = max(ends[node.inputs[0]], ends[node.name])
    held = [
        sum(begin <= number <= ends[value] + late for value, begin in begins.items()) for number in range(len(launches))
    ]
    assert most_bytes(graph, launches, lambda value: int(value in begins), lambda launch: 0, late) == max(held)


def test_memory_does_not_depend_on_the_number_of_layers() -> None:
    few, many = (
        most_bytes(graph, each(graph), lambda value: 1, lambda launch: 0)
        for graph in (build(replace(CONFIG, num_hidden_layers=layers)) for layers in (2, 9))
    )
    assert few == many

"""Graphs with inputs beside the tokens, on the Numba executor."""

from dataclasses import replace

import numpy as np
import pytest
from numba_sessions import CONFIG, Session, text

from mistral_portable.cache import Chunk
from mistral_portable.errors import BackendError, InputError
from mistral_portable.graph import Node, build, verify
from mistral_portable.graph.passes import EMBEDDED_ROWS, INPUTS_EMBEDS, accept_embeddings, drop_dead_nodes
from mistral_portable.testing import random_weights


def test_a_graph_may_take_hidden_states_as_an_input() -> None:
    """The two halves of a model, one after the other, give the logits of the whole model."""
    graph = build(CONFIG)
    at = next(index for index, node in enumerate(graph.nodes) if node.name == graph.taps["hidden_states.1"])
    middle = graph.nodes[at].name
    first = verify(drop_dead_nodes(replace(graph, outputs={"hidden": middle}, taps={})))
    later = replace(
        graph, nodes=graph.nodes[at + 1 :], inputs={**graph.inputs, middle: ("T", CONFIG.hidden_size)}, taps={}
    )
    later = verify(drop_dead_nodes(later))
    whole, begin, end = Session(graph=graph), Session(graph=first), Session(graph=later)
    for count in (1, 5, 30):
        plan = whole.manager.plan([Chunk(whole.manager.open(), text(count), range(count))])
        hidden = begin.program.step(plan)["hidden"]
        out = end.program.step(plan, {middle: hidden})["logits"]
        np.testing.assert_array_equal(out, whole.program.step(plan)["logits"])
        whole.manager.close(int(plan.lanes[0]))


def test_given_embeddings_replace_those_of_tokens() -> None:
    graph = verify(accept_embeddings(build(CONFIG)))
    session, plain = Session(graph=graph), Session(graph=build(CONFIG))
    table = np.asarray(random_weights(build(CONFIG), 0, "q4_0")["model.embed_tokens.weight"].numpy(np.float32))
    tokens = np.array(text(9), np.int32)
    wrong, places = tokens.copy(), np.array([7, 2], np.int32)
    wrong[places] = 0
    expected = plain.begin(tokens.tolist())[1]
    plan = session.manager.plan([Chunk(session.manager.open(), wrong.tolist(), range(9))])
    given = table[tokens[places]]
    out = session.program.step(plan, {INPUTS_EMBEDS: given, EMBEDDED_ROWS: places})["logits"]
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(InputError, match="names a row twice"):
        session.program.step(plan, {INPUTS_EMBEDS: given, EMBEDDED_ROWS: np.array([2, 2], np.int32)})
    with pytest.raises(InputError, match="the graph declares"):
        session.program.step(plan)


def test_replacing_rows_of_a_computed_value_is_refused() -> None:
    graph = build(CONFIG, head="none")
    inputs = {**graph.inputs, "given": ("E", CONFIG.hidden_size), "places": ("E",)}
    node = Node("more", "replace_rows", (graph.nodes[-1].name, "given", "places"), {})
    graph = verify(replace(graph, nodes=(*graph.nodes, node), inputs=inputs, outputs={"out": "more"}))
    with pytest.raises(BackendError, match="runs 'replace_rows' on embeddings and inputs of the step only") as caught:
        Session(graph=graph)
    assert "\n" not in str(caught.value)


def test_a_kernel_that_reads_an_input_of_other_rows_is_refused() -> None:
    graph = build(CONFIG, head="none")
    node = Node("more", "silu_mul", ("given", "given"), {})
    inputs = {**graph.inputs, "given": ("E", CONFIG.hidden_size)}
    graph = verify(replace(graph, nodes=(*graph.nodes, node), inputs=inputs, outputs={"out": "more"}))
    with pytest.raises(BackendError, match="the input 'given' is"):
        Session(graph=graph)

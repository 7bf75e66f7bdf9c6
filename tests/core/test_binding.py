"""The tensors of a checkpoint against the parameters of a graph."""

import numpy as np
import pytest
from weights.files import small_config

from mistral_portable.boundary.binding import check_tensors
from mistral_portable.errors import CheckpointError
from mistral_portable.graph import Graph, build
from mistral_portable.weights import DenseTensor


def tensors(graph: Graph) -> dict[str, DenseTensor]:
    zeros = {name: np.zeros(parameter.shape, np.float32) for name, parameter in graph.parameters.items()}
    return {name: DenseTensor(name, "float32", array) for name, array in zeros.items()}


def vector(name: str, size: int) -> DenseTensor:
    return DenseTensor(name, "float32", np.zeros(size, np.float32))


def test_all_problems_are_named_at_once() -> None:
    graph = build(small_config())
    given = tensors(graph)
    del given["model.norm.weight"], given["lm_head.weight"]
    given["model.embed_tokens.weight"] = vector("model.embed_tokens.weight", 7)
    given["model.layers.0.self_attn.q_proj.bias"] = vector("model.layers.0.self_attn.q_proj.bias", 64)
    with pytest.raises(CheckpointError) as caught:
        check_tensors(graph, given, "here")
    message = str(caught.value)
    assert message.startswith("here: ")
    for part in (
        "model.norm.weight is missing",
        "lm_head.weight is missing",
        "model.embed_tokens.weight has the shape (7,) and needs (96, 64)",
        "model.layers.0.self_attn.q_proj.bias is a bias",
    ):
        assert part in message


def test_every_tensor_is_named_layers_together() -> None:
    graph = build(small_config(num_hidden_layers=6))
    given = tensors(graph)
    for layer in (0, 1, 2, 5):
        del given[f"model.layers.{layer}.mlp.up_proj.weight"]
    del given["model.layers.3.mlp.down_proj.weight"]
    with pytest.raises(CheckpointError) as caught:
        check_tensors(graph, given, "here")
    problems = str(caught.value).removeprefix("here: the tensors do not fit the config: ").split("; ")
    assert problems == [
        "model.layers.{0-2,5}.mlp.up_proj.weight is missing",
        "model.layers.3.mlp.down_proj.weight is missing",
    ]


def test_tied_embeddings_need_no_language_head() -> None:
    graph = build(small_config(tie_word_embeddings=True))
    assert "lm_head.weight" not in graph.parameters
    check_tensors(graph, tensors(graph), "here")


@pytest.mark.parametrize("head", ["none", "sequence_classification", "token_classification", "question_answering"])
def test_other_heads_and_buffers_are_no_problem(head: str) -> None:
    graph = build(small_config(), head=head)
    given = tensors(graph) | tensors(build(small_config()))
    given["model.layers.0.self_attn.rotary_emb.inv_freq"] = vector("inv_freq", 8)
    check_tensors(graph, given, "here")

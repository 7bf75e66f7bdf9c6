"""Graphs that the Numba executor runs: heads, fused linears, tied and mixed weights, exposed values."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from mistral_portable_numba import BACKEND
from numba_sessions import CONFIG, Session, text

from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.graph import Graph, Node, Parameter, build, verify
from mistral_portable.graph.passes import expose_attention_weights, expose_hidden_states, fuse_linears, select_rows
from mistral_portable.testing import Case, Feed, Scenario, check, random_weights
from mistral_portable.weights import DenseTensor, QuantTensor, Tensor

CHUNKED = Scenario(
    (*((Feed(0, tuple(text(7, seed)), 7),) for seed in range(6)), (Feed(0, (1,), 1), Feed(1, (2, 3), 2)))
)


def require(config: MistralConfig, graph: Graph, weights: Mapping[str, Tensor], scenario: Scenario = CHUNKED) -> None:
    """Check that the executor computes what the oracle computes."""
    for options in (ExecutorOptions(threads=2), ExecutorOptions(dtype="float32", threads=2)):
        result = check(Case("a model", config, verify(graph), weights, scenario), BACKEND, options)
        assert result.status == "pass", str(result)


def as_type(tensor: Tensor, kind: str) -> Tensor:
    """Convert a matrix to another type."""
    values = tensor.numpy()
    if kind == "float32":
        return DenseTensor(tensor.name, kind, values)
    if kind == "float16":
        return DenseTensor(tensor.name, kind, values.astype(np.float16))
    if kind == "bfloat16":
        return DenseTensor(tensor.name, kind, (values.view(np.uint32) >> 16).astype(np.uint16))
    type = GGMLQuantizationType[kind.upper()]
    return QuantTensor(tensor.name, values.shape, type, quants.quantize(values, type))


def mixed_weights(graph: Graph) -> dict[str, Tensor]:
    """Random weights whose matrices have different types, in rotation."""
    kinds = ("q4_0", "bfloat16", "q8_0", "float32", "q4_1", "float16", "q5_0")
    weights = dict(random_weights(graph, 0))
    matrices = [name for name, tensor in weights.items() if len(tensor.shape) == 2]
    return weights | {name: as_type(weights[name], kinds[i % len(kinds)]) for i, name in enumerate(matrices)}


def test_fused_linears_give_the_same_bits() -> None:
    graph = build(CONFIG)
    fused = fuse_linears(graph)
    assert any(len(parameter.parts) > 1 for parameter in fused.parameters.values())
    plain, joined = Session(graph=graph), Session(graph=verify(fused))
    for count in (1, 5, 30):
        np.testing.assert_array_equal(joined.begin(text(count))[1], plain.begin(text(count))[1])


def test_fused_linears_of_mixed_types() -> None:
    graph = build(CONFIG)
    require(CONFIG, fuse_linears(graph), mixed_weights(graph))


def test_mixed_types() -> None:
    graph = build(CONFIG)
    require(CONFIG, graph, mixed_weights(graph))


@pytest.mark.parametrize("quantization", [None, "q4_0"])
@pytest.mark.parametrize("head", ["question_answering", "token_classification", "sequence_classification", "none"])
def test_heads(head: str, quantization: str | None) -> None:
    graph = build(CONFIG, head=head, num_labels=3)
    require(CONFIG, graph, random_weights(graph, 0, quantization))


def test_hidden_states_and_attention_weights_beside_the_logits() -> None:
    graph = select_rows(expose_attention_weights(expose_hidden_states(build(CONFIG))), "logits")
    require(CONFIG, graph, random_weights(build(CONFIG), 0, "q4_0"))


@pytest.mark.parametrize("quantization", ["q4_0", "q8_0", None])
def test_tied_weights(quantization: str | None) -> None:
    config = replace(CONFIG, tie_word_embeddings=True)
    graph = build(config)
    require(config, graph, random_weights(graph, 0, quantization))


@pytest.mark.parametrize("kind", ["q4_0", "bfloat16", "float16", "float32"])
@pytest.mark.parametrize("count", [1, 2])
def test_embedding_tables_of_any_type_and_number_of_parts(kind: str, count: int) -> None:
    names = tuple(f"part{index}" for index in range(count))
    table = Parameter("table", (40, 64), names)
    graph = verify(Graph({"table": table}, (Node("x", "embedding", ("tokens", "table"), {}),), {"out": "x"}, {}))
    values = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    pieces_of = zip(names, np.split(values, count), strict=True)
    parts = [as_type(DenseTensor(name, "float32", some), kind) for name, some in pieces_of]
    spec = CacheSpec.from_config(CONFIG, max_context=40, page_size=BACKEND.capabilities.page_size)
    program = prepare(BACKEND, graph, dict(zip(names, parts, strict=True)), spec, ExecutorOptions(threads=2))
    manager = CacheManager(spec)
    out = program.step(manager.plan([Chunk(manager.open(), [39, 0, 20, 19])]))["out"]
    np.testing.assert_array_equal(out, np.concatenate([part.numpy() for part in parts])[[39, 0, 20, 19]])


def test_steps_that_grow_and_shrink() -> None:
    sizes = [*range(1, 41, 3), 40, *range(39, 0, -4), 1, 1]
    feeds = tuple((Feed(0, tuple(text(size, index)), size),) for index, size in enumerate(sizes))
    graph = select_rows(build(CONFIG), "logits")
    require(CONFIG, graph, random_weights(graph, 0, "q4_0"), Scenario(feeds))

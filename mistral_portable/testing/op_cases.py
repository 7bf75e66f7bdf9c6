"""One case per op of the closed list: small graphs that isolate it, through the same boundary as a model."""

from collections.abc import Callable

from mistral_portable.config import MistralConfig
from mistral_portable.graph import Graph, Node, Parameter, Rotation, verify
from mistral_portable.graph.ir import Attribute
from mistral_portable.graph.passes import accept_embeddings
from mistral_portable.testing.case import Case
from mistral_portable.testing.scenario import Scenario
from mistral_portable.testing.weights import random_weights

__all__ = ["OP_CASES", "op_case"]

# A graph takes activations from nowhere but the embedding: row `token` of a random table is the op's input row.
_Parts = tuple[list[Parameter], list[Node]]


def _input(name: str, config: MistralConfig, width: int) -> _Parts:
    table = Parameter(f"{name}.table", (config.vocab_size, width), (f"{name}.table",))
    return [table], [Node(name, "embedding", ("tokens", table.name), {})]


def _parameter(name: str, *shape: int) -> Parameter:
    return Parameter(name, shape, (name,))


def _graph(*parts: _Parts) -> Graph:
    parameters = [parameter for some, _ in parts for parameter in some]
    nodes = [node for _, some in parts for node in some]
    named = {parameter.name: parameter for parameter in parameters}
    return verify(Graph(named, tuple(nodes), {"out": nodes[-1].name}, {}))


def _attention(config: MistralConfig, op: str) -> Graph:
    q_size, kv_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    attributes: dict[str, Attribute] = {
        "layer": 0,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "scale": config.head_dim**-0.5,
        "window": config.layer_windows[0],
    }
    names = ("q", "k", "v") if op == "attention" else ("q", "k")
    inputs = [_input(name, config, q_size if name == "q" else kv_size) for name in names]
    return _graph(*inputs, ([], [Node("out", op, names, attributes)]))


def _linear(config: MistralConfig) -> Graph:
    weight = _parameter("weight", config.intermediate_size, config.hidden_size)
    x = _input("x", config, config.hidden_size)
    return _graph(x, ([weight], [Node("out", "linear", ("x", "weight"), {})]))


def _linear_bias(config: MistralConfig) -> Graph:
    weight = _parameter("weight", config.intermediate_size, config.hidden_size)
    bias = _parameter("bias", config.intermediate_size)
    x = _input("x", config, config.hidden_size)
    return _graph(x, ([weight, bias], [Node("out", "linear", ("x", "weight", "bias"), {})]))


def _rms_norm(config: MistralConfig) -> Graph:
    node = Node("out", "rms_norm", ("x", "weight"), {"eps": config.rms_norm_eps})
    return _graph(_input("x", config, config.hidden_size), ([_parameter("weight", config.hidden_size)], [node]))


def _rope(config: MistralConfig) -> Graph:
    node = Node("out", "rope", ("x", "positions"), {"rotation": Rotation.of(config, queries=True)})
    return _graph(_input("x", config, config.num_attention_heads * config.head_dim), ([], [node]))


def _binary(op: str) -> Callable[[MistralConfig], Graph]:
    def build(config: MistralConfig) -> Graph:
        width = config.intermediate_size
        return _graph(_input("a", config, width), _input("b", config, width), ([], [Node("out", op, ("a", "b"), {})]))

    return build


def _weigh_rows(config: MistralConfig) -> Graph:
    a, b = _input("a", config, config.intermediate_size), _input("b", config, 1)
    return _graph(a, b, ([], [Node("out", "weigh", ("a", "b"), {})]))


def _moe(config: MistralConfig) -> Graph:
    """Experts as the config says; 3, of which 2 are chosen, where it has none."""
    count, top_k = config.num_local_experts or 3, config.num_experts_per_tok or 2
    inner, outer = config.intermediate_size, config.hidden_size
    weights = [
        Parameter(name, (count * rows, columns), tuple(f"{name}.{expert}" for expert in range(count)))
        for name, rows, columns in (("gate", inner, outer), ("up", inner, outer), ("down", outer, inner))
    ]
    node = Node("out", "moe", ("x", "scores", "gate", "up", "down"), {"top_k": top_k})
    return _graph(_input("x", config, outer), _input("scores", config, count), (weights, [node]))


def _take_columns(config: MistralConfig) -> Graph:
    start = config.hidden_size // 3
    node = Node("out", "take_columns", ("x",), {"start": start, "stop": config.hidden_size})
    return _graph(_input("x", config, config.hidden_size), ([], [node]))


def _replace_rows(config: MistralConfig) -> Graph:
    return accept_embeddings(_graph(_input("out", config, config.hidden_size)))


def _take_rows(config: MistralConfig) -> Graph:
    return _graph(_input("x", config, config.hidden_size), ([], [Node("out", "take_rows", ("x", "logit_rows"), {})]))


OP_CASES: dict[str, Callable[[MistralConfig], Graph]] = {
    "embedding": lambda config: _graph(_input("out", config, config.hidden_size)),
    "rms_norm": _rms_norm,
    "linear": _linear,
    "linear+bias": _linear_bias,
    "rope": _rope,
    "attention": lambda config: _attention(config, "attention"),
    "attention_weights": lambda config: _attention(config, "attention_weights"),
    "silu_mul": _binary("silu_mul"),
    "moe": _moe,
    "add": _binary("add"),
    "weigh": _binary("weigh"),
    "weigh+rows": _weigh_rows,
    "take_columns": _take_columns,
    "replace_rows": _replace_rows,
    "take_rows": _take_rows,
}
"""Name -> graph of the op at the sizes of a config."""


def op_case(name: str, config: MistralConfig, scenario: Scenario, seed: int, quantization: str | None = None) -> Case:
    """The case `name` of OP_CASES with random weights."""
    graph = OP_CASES[name](config)
    return Case(f"op {name}", config, graph, random_weights(graph, seed, quantization), scenario)

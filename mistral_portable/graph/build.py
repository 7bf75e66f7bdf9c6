"""MistralConfig -> Graph: the one place that knows what a Mistral decoder is."""

from collections.abc import Sequence

from mistral_portable.config import MistralConfig
from mistral_portable.errors import GraphError
from mistral_portable.graph.ir import Attribute, Graph, Node, Parameter
from mistral_portable.graph.rotation import Rotation

__all__ = ["HEADS", "build"]

HEADS = ("none", "causal_lm", "sequence_classification", "token_classification", "question_answering")
"""Names of the variants; the outputs and sources of each are in `build`."""


def build(config: MistralConfig, *, head: str = "causal_lm", num_labels: int = 2) -> Graph:
    """The decoder of `config` with one of HEADS on top.

    | head | output | rule (transformers `modeling_mistral.py`) |
    |---|---|---|
    | none | last_hidden_state [T, hidden_size] | after the final norm |
    | causal_lm | logits [T, vocab_size] | no bias; the embedding table itself if the weights are tied |
    | sequence_classification | logits [T, num_labels] | `score`, no bias; the caller pools with `rows` |
    | token_classification | logits [T, num_labels] | `score` with bias |
    | question_answering | logits [T, 2] | `qa_outputs` with bias; column 0 start, 1 end |

    Raises GraphError for an unknown head or num_labels < 1.
    """
    if head not in HEADS:
        raise GraphError(f"head={head!r} is unknown: choose one of {', '.join(HEADS)}")
    if num_labels < 1:
        raise GraphError(f"num_labels={num_labels} must be at least 1")
    builder = _Builder()
    hidden = _decoder(builder, config)
    if head == "none":
        outputs = {"last_hidden_state": hidden}
    elif head == "causal_lm":
        table = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
        outputs = {"logits": builder.linear("logits", hidden, table, config.vocab_size, config.hidden_size)}
    else:
        module, labels, bias = {
            "sequence_classification": ("score", num_labels, False),
            "token_classification": ("score", num_labels, True),
            "question_answering": ("qa_outputs", 2, True),
        }[head]
        outputs = {"logits": builder.linear("logits", hidden, module, labels, config.hidden_size, bias=bias)}
    return Graph(builder.parameters, tuple(builder.nodes), outputs, builder.taps)


class _Builder:
    def __init__(self) -> None:
        self.parameters: dict[str, Parameter] = {}
        self.nodes: list[Node] = []
        self.taps: dict[str, str] = {}

    def parameter(self, name: str, *shape: int) -> str:
        self.parameters[name] = Parameter(name, shape, (name,))
        return name

    def experts(self, module: str, matrix: str, count: int, rows: int, columns: int) -> str:
        name = f"{module}.{matrix}.weight"
        parts = tuple(f"{module}.{expert}.{matrix}.weight" for expert in range(count))
        self.parameters[name] = Parameter(name, (count * rows, columns), parts)
        return name

    def node(self, name: str, op: str, inputs: Sequence[str], **attributes: Attribute) -> str:
        self.nodes.append(Node(name, op, tuple(inputs), attributes))
        return name

    def linear(self, name: str, x: str, module: str, rows: int, columns: int, *, bias: bool = False) -> str:
        inputs = [x, self.parameter(f"{module}.weight", rows, columns)]
        if bias:
            inputs.append(self.parameter(f"{module}.bias", rows))
        return self.node(name, "linear", inputs)


def _decoder(builder: _Builder, config: MistralConfig) -> str:
    """Embedding, the layers, the final norm; returns the name of the normed hidden state."""
    table = builder.parameter("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
    hidden = builder.node("embedding", "embedding", ("tokens", table))
    builder.taps["hidden_states.0"] = hidden
    for layer, window in enumerate(config.layer_windows):
        hidden = _layer(builder, config, layer, window, hidden)
        builder.taps[f"hidden_states.{layer + 1}"] = hidden
    weight = builder.parameter("model.norm.weight", config.hidden_size)
    normed = builder.node("norm", "rms_norm", (hidden, weight), eps=config.rms_norm_eps)
    builder.taps[f"hidden_states.{config.num_hidden_layers}"] = normed  # as transformers: the last one is normed
    return normed


def _layer(builder: _Builder, config: MistralConfig, layer: int, window: int | None, hidden: str) -> str:
    """Pre-norm attention and gated MLP (or experts), each added to the residual stream."""
    module, value = f"model.layers.{layer}", f"layers.{layer}"
    q_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim

    def norm(kind: str, x: str) -> str:
        weight = builder.parameter(f"{module}.{kind}.weight", config.hidden_size)
        return builder.node(f"{value}.{kind}", "rms_norm", (x, weight), eps=config.rms_norm_eps)

    def linear(name: str, x: str, submodule: str, rows: int, columns: int) -> str:
        return builder.linear(f"{value}.{name}", x, f"{module}.{submodule}", rows, columns)

    def rope(name: str, x: str, queries: bool) -> str:
        return builder.node(f"{value}.{name}", "rope", (x, "positions"), rotation=Rotation.of(config, queries=queries))

    x = norm("input_layernorm", hidden)
    q = linear("q", x, "self_attn.q_proj", q_size, config.hidden_size)
    k = linear("k", x, "self_attn.k_proj", kv_size, config.hidden_size)
    v = linear("v", x, "self_attn.v_proj", kv_size, config.hidden_size)
    attended = builder.node(
        f"{value}.attention",
        "attention",
        (rope("q_rope", q, queries=True), rope("k_rope", k, queries=False), v),
        layer=layer,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        scale=config.head_dim**-0.5,
        window=window,
    )
    o = linear("o", attended, "self_attn.o_proj", config.hidden_size, q_size)
    residual = builder.node(f"{value}.residual", "add", (hidden, o))
    x = norm("post_attention_layernorm", residual)
    if config.num_local_experts:
        down = _experts(builder, config, module, value, x)
    else:
        gate = linear("gate", x, "mlp.gate_proj", config.intermediate_size, config.hidden_size)
        up = linear("up", x, "mlp.up_proj", config.intermediate_size, config.hidden_size)
        activated = builder.node(f"{value}.silu_mul", "silu_mul", (gate, up))
        down = linear("down", activated, "mlp.down_proj", config.hidden_size, config.intermediate_size)
    return builder.node(f"{value}.output", "add", (residual, down))


def _experts(builder: _Builder, config: MistralConfig, module: str, value: str, x: str) -> str:
    """Mixtral's MLPs, with the names of its checkpoints: w1 is gate, w3 up, w2 down."""
    count, inner, outer = config.num_local_experts, config.intermediate_size, config.hidden_size
    scores = builder.linear(f"{value}.scores", x, f"{module}.block_sparse_moe.gate", count, outer)
    gate, up, down = (
        builder.experts(f"{module}.block_sparse_moe.experts", matrix, count, rows, columns)
        for matrix, rows, columns in (("w1", inner, outer), ("w3", inner, outer), ("w2", outer, inner))
    )
    return builder.node(f"{value}.experts", "moe", (x, scores, gate, up, down), top_k=config.num_experts_per_tok)

"""Hypothesis strategies: configs, scenarios, and the cases made of them. Needs the [test] extra."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mistral_portable.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    MistralConfig,
    QueryScale,
    RopeScaling,
    Window,
    Yarn,
)
from mistral_portable.graph import build, verify
from mistral_portable.graph.adapters import Changed, add_adapters, is_added, weight_name
from mistral_portable.graph.passes import accept_embeddings, select_rows
from mistral_portable.testing.case import Case
from mistral_portable.testing.op_cases import op_case
from mistral_portable.testing.scenario import Feed, Scenario
from mistral_portable.testing.weights import random_weights
from mistral_portable.weights import DenseTensor

__all__ = [
    "PAGE_WINDOWS",
    "WINDOWS",
    "adapter_cases",
    "configs",
    "model_cases",
    "op_cases",
    "page_cases",
    "query_scales",
    "scenarios",
    "yarns",
]

WINDOWS: Sequence[Window] = (1, 2, 3, 4, 5, 6, 7, 8, None)
PAGE_WINDOWS: Sequence[Window] = (*range(1, 9), *range(60, 71), *[None] * 5)
"""Windows within a page of 64 slots, and about as wide as one."""

_SEEDS = st.integers(0, 2**31)


@st.composite
def configs(
    draw: st.DrawFn, /, *, max_layers: int = 3, columns: int = 1, windows: Sequence[Window] = WINDOWS
) -> MistralConfig:
    """Small models of every shape: head_dim != hidden / heads, MQA, GQA and MHA, tied or not, some of `windows`, also
    mixed over the layers; YaRN, queries that grow with their position, and experts, each in one of three.
    Texts pass the original lengths of the former several times. All matrix columns are multiples of `columns` (32
    fills a Q4_0 block).

    The widest heads and inputs are longer than a block of a Precision, and end within one.
    """
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 4]))
    head_dim = draw(st.sampled_from([2, 4, 6, 8, 10, 16, 40])) if columns == 1 else columns
    window = st.sampled_from(windows)
    layers = draw(st.integers(1, max_layers))
    hidden = columns * draw(st.integers(1, 4)) if columns > 1 else draw(st.integers(4, 48))
    original = draw(st.integers(4, 16))
    experts = draw(st.sampled_from([0, 0, 0, 0, 2, 4]))
    pattern: Any = draw(st.one_of(window, st.lists(window, min_size=min(2, layers), max_size=layers).map(tuple)))
    return MistralConfig(
        vocab_size=draw(st.integers(5, 40)),
        hidden_size=hidden,
        intermediate_size=columns * draw(st.integers(1, 9)) if columns > 1 else draw(st.integers(4, 64)),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=4096,
        rms_norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        rope_theta=draw(st.sampled_from([1e4, 1e6])),
        tie_word_embeddings=draw(st.booleans()),
        sliding_window=pattern,
        rope_scaling=draw(st.one_of(st.none(), st.none(), yarns(original))),
        query_scale=draw(st.one_of(st.none(), st.none(), query_scales(original))),
        num_local_experts=experts,
        num_experts_per_tok=draw(st.integers(1, experts)) if experts else 0,
    )


def yarns(original: int) -> st.SearchStrategy[Yarn]:
    """YaRN whose bounds lie within the pairs of a head or beyond them."""
    return st.builds(
        Yarn,
        factor=st.sampled_from([1.0, 4.0, 16.0, 48.0]),
        original_max_position_embeddings=st.just(original),
        beta_fast=st.sampled_from([1.5, 4.0, 32.0]),
        beta_slow=st.sampled_from([0.125, 1.0]),
        attention_factor=st.sampled_from([None, 1.0, 0.75]),
        truncate=st.booleans(),
    )


def rope_scalings(original: int, pairs: int) -> st.SearchStrategy[RopeScaling]:
    """Scalings of RoPE other than YaRN, for heads of so many pairs; LongRoPE's original length is `original`, too."""
    factors = st.lists(st.sampled_from([1.0, 1.5, 8.0]), min_size=pairs, max_size=pairs).map(tuple)
    factor = st.sampled_from([1.0, 2.5, 8.0])
    return st.one_of(
        st.builds(LinearScaling, factor),
        st.builds(DynamicScaling, factor),
        st.builds(Llama3Scaling, factor, st.just(original), st.sampled_from([0.5, 1.0]), st.sampled_from([1.5, 4.0])),
        st.builds(LongRope, factors, factors, st.just(original), st.sampled_from([1.0, 1.25])),
    )


def query_scales(original: int) -> st.SearchStrategy[QueryScale]:
    """Queries that grow every `original` tokens."""
    return st.builds(QueryScale, st.sampled_from([0.1, 1.0]), st.just(original))


@st.composite
def scenarios(
    draw: st.DrawFn,
    /,
    vocab_size: int,
    *,
    sequences: int = 1,
    chunks: Sequence[int] | None = None,
    rollback: bool = False,
    rows: bool = False,
    swap: bool = False,
    fork: bool = False,
    embeds: bool = False,
    lengths: tuple[int, int] = (1, 33),
) -> Scenario:
    """Texts of drawn lengths, cut into drawn chunks; sequences join and pause at drawn steps and run ragged.

    chunks: the chunk sizes to choose from (None: any; (1,): token by token). rollback: feeds may carry tokens that
    are taken back after the step. rows: feeds ask for some of their rows, or none. swap, fork, embeds: see Scenario.
    lengths: those of the shortest and the longest text to draw; 33 is 4 W at the widest of WINDOWS, and one more.
    """
    random = np.random.default_rng(draw(_SEEDS))

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(random.integers(0, vocab_size, count).tolist())

    # Small chunks as often as any: else most texts would be over after one or two steps.
    size = st.sampled_from(list(chunks)) if chunks else st.one_of(st.integers(1, 4), st.integers(1, lengths[1]))
    steps: list[list[Feed]] = []
    for sequence in range(sequences):
        text = tokens(draw(st.integers(*lengths)))
        step = draw(st.integers(0, 3)) if sequence else 0
        while text:
            keep = min(draw(size), len(text))
            surplus = tokens(draw(st.integers(0, 4))) if rollback else ()
            requested = tuple(sorted(draw(st.sets(st.integers(0, keep - 1))))) if rows else None
            while len(steps) <= step:
                steps.append([])
            steps[step].append(Feed(sequence, text[:keep] + surplus, keep, requested))
            text = text[keep:]
            step += draw(st.integers(1, 2)) if sequences > 1 else 1
    # In any order: a plan's lanes need not ascend.
    return Scenario(tuple(tuple(draw(st.permutations(feeds))) for feeds in steps if feeds), swap, fork, embeds)


@st.composite
def op_cases(draw: st.DrawFn, /, name: str) -> Case:
    """A drawn case of one op, over ragged, chunked sequences."""
    config = draw(configs(max_layers=1))
    scenario = draw(scenarios(config.vocab_size, sequences=2, rows=name == "take_rows", embeds=name == "replace_rows"))
    return op_case(name, config, scenario, draw(_SEEDS))


@st.composite
def model_cases(draw: st.DrawFn, /, quantization: str | None = None, **scenario: Any) -> Case:
    """A drawn causal LM with drawn weights and the kind of scenario that the keywords of `scenarios` ask for."""
    config = draw(configs(columns=1 if quantization is None else 32))
    graph = select_rows(build(config), "logits")
    if scenario.get("embeds"):
        graph = accept_embeddings(graph)
    weights = random_weights(graph, draw(_SEEDS), quantization)
    return Case("causal LM", config, graph, weights, draw(scenarios(config.vocab_size, **scenario)))


@st.composite
def adapter_cases(draw: st.DrawFn, /, quantization: str | None = None) -> Case:
    """A drawn causal LM with one to three adapters, each of which changes some of its weights, and ragged texts."""
    config = draw(configs(max_layers=2, columns=1 if quantization is None else 32))
    plain = build(config)
    names = [name for node in plain.nodes if (name := weight_name(plain, node))]
    if config.num_local_experts:  # what else changes moves the scores, which must stay clear
        names = [name for name in names if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))]
    count = draw(st.integers(1, 3))
    changes = draw(st.dictionaries(st.sampled_from(names), _changes(count), min_size=1))
    adapted, constants = add_adapters(plain, changes)
    graph = verify(select_rows(adapted, "logits"))
    seed = draw(_SEEDS)
    weights, floats = random_weights(graph, seed, quantization), random_weights(graph, seed)
    own = {name: floats[name] for name in graph.tensors if is_added(name)}  # they are never quantized
    given = {name: DenseTensor(name, "float32", array) for name, array in constants.items()}
    scenario = draw(scenarios(config.vocab_size, sequences=2, rows=draw(st.booleans())))
    return Case("causal LM with adapters", config, graph, {**weights, **own, **given}, scenario)


@st.composite
def _changes(draw: st.DrawFn, /, count: int) -> Changed:
    """The changes of a weight by `count` adapters: low-rank ones, replacements, or both."""
    adapters = range(count)
    whole = tuple(index for index in adapters if draw(st.integers(0, 4)) == 0)
    ranks = tuple(draw(st.sampled_from([0, 1, 3, 8])) for _ in adapters)
    if not (whole or any(ranks)):
        ranks = (2, *ranks[1:])
    return Changed(ranks, tuple(draw(st.sampled_from([0.5, 1.0, -1.7])) for _ in adapters), whole)


@st.composite
def page_cases(draw: st.DrawFn, /) -> Case:
    """A drawn causal LM and texts of 65 to 200 tokens, which cross pages of 64 slots: ragged, in chunks, with tokens
    that are taken back, by rollbacks or by forks, or with swaps."""
    config = draw(configs(max_layers=2, windows=PAGE_WINDOWS))
    graph = select_rows(build(config), "logits")
    weights = random_weights(graph, draw(_SEEDS))
    kinds: list[dict[str, bool]] = [{"rollback": True}, {"rollback": True, "fork": True}, {"swap": True}]
    kind = draw(st.sampled_from(kinds))
    chunks = draw(st.sampled_from([None, (16, 48, 64, 65)]))
    scenario = draw(scenarios(config.vocab_size, sequences=2, chunks=chunks, lengths=(65, 200), **kind))
    return Case("causal LM", config, graph, weights, scenario)

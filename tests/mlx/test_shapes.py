"""Attention and experts at the sizes for which MLX has kernels of its own, beside float64."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_mlx import BACKEND
from mistral_portable_mlx.attention import FloatFormat, Format, Q8Format, mask
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.config import MistralConfig
from mistral_portable.graph import build
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing import Case, Feed, Scenario, check, nmse, random_weights

pytestmark = pytest.mark.usefixtures("uncompiled")
HEADS, KV_HEADS = 4, 1


def expected_attention(
    q: NDArray[Any], keys: NDArray[Any], values: NDArray[Any], seen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Attention of one sequence in float64: q [heads, T, d], keys and values [kv_heads, C, d], seen [T, C]."""
    shared = len(q) // len(keys)
    wide = q.astype(np.float64), np.repeat(keys, shared, 0).astype(np.float64), np.repeat(values, shared, 0)
    scores = np.where(seen, wide[0] @ wide[1].swapaxes(1, 2) / np.sqrt(q.shape[2]), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = (weights / weights.sum(axis=-1, keepdims=True)) @ wide[2].astype(np.float64)
    return result


def rounded(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Numbers as an 8-bit cache keeps them."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scales = (np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
    result: NDArray[np.float64] = (np.round(blocks / scales).clip(-127, 127) * scales.astype(np.float64)).reshape(
        x.shape
    )
    return result


def check_attention(format: Format, head_dim: int, lanes: int, tokens: int, slots: int, allowed: float) -> None:
    """Rings that are full and have wrapped at different places; each query sees all but the oldest 5 keys or so."""
    random = np.random.default_rng(tokens + slots + head_dim)
    shapes = (lanes, HEADS, tokens, head_dim), (lanes, KV_HEADS, slots, head_dim)
    q, keys, values = (random.standard_normal(shape, np.float32) for shape in (shapes[0], shapes[1], shapes[1]))
    last = slots + 7 + np.arange(lanes)
    positions = last[:, None] - np.arange(tokens)[::-1]
    first = positions - (slots - tokens - 5)
    every = np.arange(slots)
    held = last[:, None] - (last[:, None] - every) % slots
    made = [mx.array(x).reshape(-1, KV_HEADS, head_dim) for x in (keys.swapaxes(1, 2), values.swapaxes(1, 2))]
    parts = [array.reshape(lanes, slots, KV_HEADS, -1).swapaxes(1, 2) for array in format.encode(*made)]
    seen = mask(*(mx.array(array.astype(np.int32)) for array in (first, positions, held)))
    found = np.array(format.attend(mx.array(q), parts, seen, head_dim**-0.5).astype(mx.float32))
    stored = [rounded(x) for x in (keys, values)] if isinstance(format, Q8Format) else [keys, values]
    for lane in range(lanes):
        visible = (held[lane] >= first[lane][:, None]) & (held[lane] <= positions[lane][:, None])
        assert nmse(found[lane], expected_attention(q[lane], stored[0][lane], stored[1][lane], visible)) <= allowed


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("lanes", "tokens", "slots"),
    [
        *((1, tokens, slots) for tokens in (1, 4, 8, 9) for slots in (1024, 4096)),
        (1, 512, 1024),
        (1, 512, 4096),
        (4, 1, 1024),
        (3, 8, 1024),
    ],
)
def test_attention_over_a_wrapped_ring(head_dim: int, lanes: int, tokens: int, slots: int) -> None:
    check_attention(FloatFormat(mx.float32, head_dim), head_dim, lanes, tokens, slots, 1e-10)


@pytest.mark.parametrize("sums", [mx.float32, mx.float16])
@pytest.mark.parametrize(("lanes", "tokens", "slots"), [(1, 1, 4096), (1, 8, 1024), (1, 9, 1024), (4, 1, 1024)])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_attention_over_8_bits(sums: mx.Dtype, lanes: int, tokens: int, slots: int, head_dim: int) -> None:
    """Beside keys and values that are rounded alike. Weights and results in float16 are off by 2^-12 at most, squared
    6e-8, twice; on a CPU MLX rounds each of the sums over the slots."""
    roundings = slots if mx.default_device().type == mx.DeviceType.cpu else 2
    allowed = 1e-10 if sums == mx.float32 else roundings * 2.0**-24
    check_attention(Q8Format(mx.float32, head_dim, sums), head_dim, lanes, tokens, slots, allowed)


EXPERTS = MistralConfig(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    sliding_window=20,
    num_local_experts=4,
    num_experts_per_tok=2,
)


def logits_pass(
    config: MistralConfig, counts: tuple[int, ...], quantization: str | None = None, **options: Any
) -> None:
    """A text in chunks of these lengths has the reference's logits."""
    tokens = iter(np.random.default_rng(0).integers(0, config.vocab_size, sum(counts)).tolist())
    scenario = Scenario(tuple((Feed(0, tuple(next(tokens) for _ in range(n)), min(n, 4)),) for n in counts))
    graph = select_rows(build(config), "logits")
    case = Case("shapes", config, graph, random_weights(graph, 0, quantization), scenario)
    result = check(case, BACKEND, ExecutorOptions(**options))
    assert result.status == "pass", result


@pytest.mark.parametrize("quantization", [None, "q4_0"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@settings(max_examples=4)  # each is a text of a hundred tokens
@given(counts=st.lists(st.sampled_from([1, 5, 31, 32, 33, 60]), min_size=2, max_size=4).map(tuple))
def test_experts_of_few_tokens_and_of_many(quantization: str | None, dtype: str, counts: tuple[int, ...]) -> None:
    """From 32 tokens on, 64 pairs with 2 experts each, they are sorted by expert."""
    logits_pass(EXPERTS, counts, quantization, dtype=dtype)


@pytest.mark.parametrize("kv_cache", [None, "q8_0"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_model_with_heads_that_a_gpu_has_kernels_for(head_dim: int, kv_cache: str | None) -> None:
    """A ring of 1,023 slots that wraps, in chunks of the sizes between which kernels change."""
    config = MistralConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=head_dim,
        sliding_window=512,
    )
    logits_pass(config, (512, 500, 9, 8, 4, 1, 1), dtype="float32", kv_cache=kv_cache)

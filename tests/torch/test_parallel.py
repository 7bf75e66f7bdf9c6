"""Tensor parallelism: several processes compute what one computes. Threads stand for them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_torch.parallel import shard
from torch_processes import ParallelBackend
from torch_sessions import CONFIG

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.graph import build, infer_shapes
from mistral_portable.graph.passes import expose_attention_weights, select_rows
from mistral_portable.testing import Case, check, random_weights
from mistral_portable.testing.strategies import configs, scenarios


@pytest.mark.parametrize("quantization", [None, "q4_0"])
@settings(max_examples=12)
@given(
    data=st.data(), size=st.sampled_from([2, 3]), dtype=st.sampled_from(["float32", "bfloat16"]), seed=st.integers(0)
)
def test_shards_compute_what_one_process_computes(
    quantization: str | None, data: st.DataObject, size: int, dtype: str, seed: int
) -> None:
    """Drawn cases with rollbacks and swaps; the LM head is cut if its rows can be divided and it is not the table."""
    config = data.draw(configs(columns=32 if quantization else 1))
    config = replace(
        config,
        num_attention_heads=size * config.num_attention_heads,
        num_key_value_heads=size * config.num_key_value_heads,
        intermediate_size=size * config.intermediate_size,
        num_local_experts=0,
        num_experts_per_tok=0,
    )
    drawn = data.draw(
        scenarios(config.vocab_size, sequences=2, rollback=True, rows=True, swap=data.draw(st.booleans()))
    )
    graph = select_rows(build(config), "logits")
    case = Case("shards", config, graph, random_weights(graph, seed % 2**31, quantization), drawn)
    result = check(case, ParallelBackend(size), ExecutorOptions(dtype=dtype))
    assert result.status == "pass", result


def test_every_process_holds_its_share() -> None:
    graph, weights = select_rows(build(CONFIG), "logits"), random_weights(build(CONFIG), 0)
    spec = CacheSpec.from_config(CONFIG, max_context=64, page_size=256)
    parts = [shard(graph, weights, spec, rank, 2) for rank in range(2)]
    for part in parts:
        infer_shapes(part.graph)
        assert part.spec.num_key_value_heads == CONFIG.num_key_value_heads // 2
        assert set(part.after.values()) == {"sum", "gather"}
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj"):
        whole = f"model.layers.0.{name}.weight"
        rows = [part.weights[whole].numpy() for part in parts]
        np.testing.assert_array_equal(np.concatenate(rows, axis=0), weights[whole].numpy())
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        whole = f"model.layers.1.{name}.weight"
        columns = [part.weights[whole].numpy() for part in parts]
        np.testing.assert_array_equal(np.concatenate(columns, axis=1), weights[whole].numpy())


@pytest.mark.parametrize(
    ("size", "quantization", "message"),
    [
        (4, None, "tensor_parallel=4: 2 key/value heads cannot be divided evenly: choose a divisor of 2"),
        (2, "q4_0", "the 96 columns of .*down_proj.* in blocks of 32: choose fewer processes"),
    ],
)
def test_sizes_that_cannot_be_divided_are_refused(size: int, quantization: str | None, message: str) -> None:
    graph, weights = build(CONFIG), random_weights(build(CONFIG), 0, quantization)
    with pytest.raises(BackendError, match=message):
        shard(graph, weights, CacheSpec.from_config(CONFIG, max_context=64, page_size=256), 0, size)


def test_experts_are_refused() -> None:
    config = replace(CONFIG, num_local_experts=4, num_experts_per_tok=2)
    graph, weights = build(config), random_weights(build(config), 0)
    with pytest.raises(BackendError, match="tensor_parallel=2 cannot divide a model with experts"):
        shard(graph, weights, CacheSpec.from_config(config, max_context=64, page_size=256), 0, 2)


def test_attention_weights_are_refused() -> None:
    graph, weights = expose_attention_weights(build(CONFIG)), random_weights(build(CONFIG), 0)
    with pytest.raises(BackendError, match="tensor_parallel=2 cannot return attention weights"):
        shard(graph, weights, CacheSpec.from_config(CONFIG, max_context=64, page_size=256), 0, 2)

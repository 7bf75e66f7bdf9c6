"""Kernels of a decoding step, counted in the graph that MLX would run: a view is none, all else is one.

On a CPU `mx.fast` builds norms and attention of smaller operations; here each is one, as on a GPU.
"""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_sessions import CONFIG, Session, text

from mistral_portable.cache import Chunk
from mistral_portable.config import MistralConfig

_VIEWS = {"Reshape", "Broadcast", "Squeeze", "ExpandDims", "Transpose", "Slice", "Flatten", "Unflatten", "View"}
WIDE = replace(CONFIG, head_dim=32)  # a whole group of an 8-bit cache


@pytest.fixture(autouse=True)
def _fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and attention as one operation each, of the same inputs; their results mean nothing."""

    def attention(q: mx.array, keys: mx.array, values: mx.array, **_: Any) -> mx.array:
        length, width = q.shape[2:]
        return mx.addmm(q, mx.broadcast_to(keys[:, :1, :length], q.shape), values[:, :1, :width])

    monkeypatch.setattr(mx.fast, "rms_norm", lambda x, weight, eps: mx.cumsum(x, axis=-1))
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", attention)


def kernels(folder: Path, config: MistralConfig, lanes: int, **options: Any) -> Counter[str]:
    """The kernels of a step of one token in each lane. It has been recorded, and waits for the one before it."""
    session = Session(config, **options)
    opened = [session.begin(text(30 + lane))[0] for lane in range(lanes)]
    first = session.program.submit(session.manager.plan([Chunk(lane, [1], [0]) for lane in opened]))
    chunks = [Chunk(lane, [0], [0], source=row) for row, lane in enumerate(opened)]
    step = session.program.submit(session.manager.plan(chunks), after=first)
    graph = folder / "graph.dot"
    mx.export_to_dot(str(graph), step.chosen)
    found = Counter(re.findall(r'label ?= ?"(\w+)", shape=rectangle', graph.read_text()))
    return Counter({name: count for name, count in found.items() if name not in _VIEWS})


def in_a_layer(folder: Path, config: MistralConfig, lanes: int = 1, **options: Any) -> Counter[str]:
    """The kernels that a third layer adds to two."""
    two, three = (kernels(folder, replace(config, num_hidden_layers=count), lanes, **options) for count in (2, 3))
    assert not two - three
    return three - two


def test_a_layer_has_14_kernels(tmp_path: Path) -> None:
    """Two norms, four products, q's and k's RoPE, two writes, attention, SwiGLU, two sums."""
    found = in_a_layer(tmp_path, CONFIG)
    assert [found[name] for name in ("CumSum", "Matmul", "Scatter", "AddMM", "Add")] == [2, 4, 2, 1, 2]
    assert found.total() == 14


@pytest.mark.parametrize("lanes", [2, 4])
def test_lanes_add_no_kernels_but_the_orders_of_queries_and_results(tmp_path: Path, lanes: int) -> None:
    assert in_a_layer(tmp_path, CONFIG, lanes) - in_a_layer(tmp_path, CONFIG) == Counter({"Gather": 2})


def test_an_8_bit_cache_has_15_kernels_more(tmp_path: Path) -> None:
    """5 that make blocks of keys and values together, two writes of scales, and for attention 9 in place of one: a
    query's scaling, two products, a mask and a softmax, and for keys and values each the scales in float32 and their
    offsets."""
    found = in_a_layer(tmp_path, WIDE, kv_cache="q8_0")
    assert (found["Scatter"], found["QuantizedMatmul"]) == (4, 2)
    assert found.total() == 14 + 15

"""Experts on torch: gathered, one by one and all tokens, as recorded, give the same sums; and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mistral_portable_torch.elementwise import elementwise
from mistral_portable_torch.experts import Experts, route
from mistral_portable_torch.matrices import read_matrix
from torch_sessions import CONFIG, PagedBackend

from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.graph import build
from mistral_portable.reference import ops
from mistral_portable.testing import random_weights
from mistral_portable.weights import DenseTensor, Tensor
from mistral_portable.weights.quantize_on_read import quantized


@given(
    tokens=st.integers(1, 9),
    count=st.integers(1, 6),
    blocks=st.booleans(),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_all_methods_give_the_result_of_the_reference(
    tokens: int, count: int, blocks: bool, seed: int, data: st.DataObject
) -> None:
    random, top_k = np.random.default_rng(seed), data.draw(st.integers(1, count))
    shapes = {"gate": (96, 64), "up": (96, 64), "down": (64, 96)}
    parts: dict[str, list[Tensor]] = {}
    for name, shape in shapes.items():
        floats = {
            f"{name}.{e}": DenseTensor(name, "float32", random.standard_normal(shape, np.float32) * shape[1] ** -0.5)
            for e in range(count)
        }
        parts[name] = list((quantized(floats, "q8_0") if blocks else floats).values())
    x = random.standard_normal((tokens, 64), np.float32)
    scores = random.integers(0, 3, (tokens, count)).astype(np.float32)  # with many ties, which the lower index wins
    matrices = [read_matrix(some, torch.float32, torch.device("cpu")) for some in parts.values()]
    experts = Experts(matrices, top_k, elementwise("cpu"))
    gate, up, down = (np.concatenate([part.numpy(np.float64) for part in some]) for some in parts.values())
    expected = ops.moe(x.astype(np.float64), scores.astype(np.float64), gate, up, down, top_k)
    inputs = (torch.from_numpy(x), *route(torch.from_numpy(scores), top_k), count)
    for way in (experts.gathered, experts.one_by_one, experts.all_tokens):
        np.testing.assert_allclose(way(*inputs).numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_bitsandbytes_types_are_refused(kind: str) -> None:
    config = replace(CONFIG, num_local_experts=4, num_experts_per_tok=2)
    graph = build(config)
    spec = CacheSpec.from_config(config, max_context=8, page_size=256)
    with pytest.raises(BackendError, match=f"quantize='{kind}' is not made for experts: choose q4_0"):
        prepare(PagedBackend(), graph, random_weights(graph, 0), spec, ExecutorOptions(dtype="float32", quantize=kind))

"""Options of the MLX executor, types of weights, and what is refused or noticed."""

import warnings
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from mistral_portable_mlx import BACKEND, device
from mistral_portable_mlx.matrices import notice_float32
from mlx_sessions import Session, text
from weights.files import random_blocks

from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.boundary.shared import stored_dtype
from mistral_portable.cache import CacheSpec
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BackendError
from mistral_portable.graph import build
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing import Case, Feed, Scenario, check, random_weights
from mistral_portable.weights import DenseTensor, JoinedTensor, QuantTensor, Tensor

pytestmark = pytest.mark.usefixtures("uncompiled")


def test_probe_says_what_runs() -> None:
    found = BACKEND.probe()
    assert found.score > 0
    assert found.reason.startswith(("Metal, ", "CUDA, ", "CPU, "))
    assert f"MLX {version('mlx')}" in found.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "computes in float32, float16, bfloat16"),
        ({"dtype": "int8"}, "choose one, or another backend"),
        ({"kv_cache": "q4_0"}, "in float32, q8_0 beside dtype 'float32'"),
        ({"dtype": "bfloat16", "kv_cache": "float32"}, "in bfloat16, q8_0 beside dtype 'bfloat16'"),
        ({"threads": 3}, "threads=3: it has no such choice"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        Session(**({"dtype": "float32"} | options))


def k_weights(config: MistralConfig, kind: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = dict(random_weights(build(config), 3))
    for name, tensor in weights.items():
        if len(tensor.shape) == 2:
            blocks = random_blocks(kind.upper(), (tensor.shape[0], tensor.shape[1]), np.random.default_rng(len(name)))
            weights[name] = QuantTensor(name, tensor.shape, GGMLQuantizationType[kind.upper()], blocks)
    return weights


K_CONFIG = MistralConfig(
    vocab_size=40,
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    sliding_window=6,
)


@pytest.mark.filterwarnings("ignore:.*matrices")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])  # in float32 they are exact: test_ggml.py
@pytest.mark.parametrize("kind", ["q4_k", "q5_k", "iq4_xs", "q6_k"])
def test_types_that_gguf_files_have_in_half_precision(kind: str, dtype: str) -> None:
    graph = select_rows(build(K_CONFIG), "logits")
    tokens = tuple(text(20))
    scenario = Scenario(((Feed(0, tokens[:9], 9),), *((Feed(0, (token,), 1),) for token in tokens[9:])))
    case = Case(kind, K_CONFIG, graph, k_weights(K_CONFIG, kind), scenario)
    result = check(case, BACKEND, ExecutorOptions(dtype=dtype))
    assert result.status == "pass", result


def test_widened_types_are_noticed() -> None:
    spec = CacheSpec.from_config(K_CONFIG, max_context=64, page_size=None)
    graph = select_rows(build(K_CONFIG), "logits")
    with pytest.warns(UserWarning, match=r"9 matrices \(9 in q6_k\) are unpacked to float32.*it holds iq4_nl, "):
        prepare(BACKEND, graph, k_weights(K_CONFIG, "q6_k"), spec, ExecutorOptions(dtype="float32")).close()


def test_blocks_that_bfloat16_programs_multiply_in_float32_are_noticed() -> None:
    graph = select_rows(build(K_CONFIG), "logits")
    with pytest.warns(UserWarning, match=r"9 matrices are multiplied in float32.*--dtype float16"):
        notice_float32(graph, k_weights(K_CONFIG, "q4_0"), mx.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notice_float32(graph, k_weights(K_CONFIG, "q4_0"), mx.float16)
        notice_float32(graph, random_weights(build(K_CONFIG), 0), mx.bfloat16)


@pytest.mark.parametrize(
    ("architecture", "emulates"),
    [("applegpu_g13s", True), ("applegpu_g14g", True), ("applegpu_g15d", False), ("", False)],
)
def test_a_gpu_that_emulates_bfloat16_is_noticed(
    architecture: str, emulates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An M1 or M2; and on a GPU, which makes its kernels when they are first used, a program is warmed."""
    found = device.Device("CUDA", "Apple M2", 2**30, "1", architecture)
    monkeypatch.setattr(device, "find_device", lambda: found)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session = Session(dtype="bfloat16")
    assert any("Apple M2 has no bfloat16" in str(warning.message) for warning in caught) == emulates
    assert session.program.traces == 4


def test_pieces_of_bfloat16_are_run_in_bfloat16_and_blocks_in_float16() -> None:
    piece = DenseTensor("w", "bfloat16", np.zeros((2, 32), np.uint16))
    blocks = QuantTensor("w", (2, 32), GGMLQuantizationType.Q8_0, np.zeros((2, 34), np.uint8))
    assert stored_dtype([JoinedTensor("w", (piece, piece), 0), blocks]) == "bfloat16"
    assert stored_dtype([blocks, blocks, piece]) == "float16"

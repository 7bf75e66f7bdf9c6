"""MLX's quantized repositories, as `mlx_lm.convert` writes them: read, run, refused where they are broken."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_mlx import BACKEND
from weights.files import random_tensors, small_config

import mistral_portable as mp
from mistral_portable.boundary import ExecutorOptions
from mistral_portable.boundary.shared import stored_dtype
from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError, ConfigError, InputError
from mistral_portable.graph import build
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing import Case, Feed, Scenario, check
from mistral_portable.weights import AffineTensor, DenseTensor, open_checkpoint

pytestmark = pytest.mark.usefixtures("uncompiled")
CONFIG = small_config(hidden_size=128, intermediate_size=256, head_dim=32, sliding_window=12)


def write_repository(
    folder: Path,
    bits: int = 4,
    group_size: int = 64,
    dtype: mx.Dtype = mx.bfloat16,
    config: MistralConfig = CONFIG,
    changes: dict[str, Any] | None = None,
) -> dict[str, mx.array]:
    """Write a repository whose matrices are all quantized; returns its weights in float32."""
    stored: dict[str, mx.array] = {}
    values: dict[str, mx.array] = {}
    for name, array in random_tensors(config, np.random.default_rng(0)).items():
        weight = mx.array(array).astype(dtype)
        if array.ndim == 1:
            stored[name], values[name] = weight, weight.astype(mx.float32)
            continue
        codes, scales, biases = mx.quantize(weight, group_size, bits)
        module = name.removesuffix(".weight")
        stored |= {name: codes, f"{module}.scales": scales, f"{module}.biases": biases}
        wide = scales.astype(mx.float32), biases.astype(mx.float32)
        values[name] = mx.dequantize(codes, *wide, group_size=group_size, bits=bits)
    how = {"group_size": group_size, "bits": bits}
    kind = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    text = kind | config.to_dict() | {"quantization": how, "quantization_config": how} | (changes or {})
    (folder / "config.json").write_text(json.dumps(text))
    mx.save_safetensors(str(folder / "model.safetensors"), stored, {"format": "mlx"})
    return values


def stored(folder: Path) -> dict[str, mx.array]:
    """Read the tensors of the file into memory, so that the file may be overwritten."""
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    mx.eval(tensors)
    return tensors


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@settings(max_examples=8)
@given(bits=st.sampled_from([2, 3, 4, 5, 6, 8]), group_size=st.sampled_from([32, 64, 128]))
def test_weights_are_those_of_mlx(
    tmp_path_factory: pytest.TempPathFactory, dtype: mx.Dtype, bits: int, group_size: int
) -> None:
    folder = tmp_path_factory.mktemp("repository")
    values = write_repository(folder, bits, group_size, dtype)
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.tensors) == set(values)
    for name, tensor in checkpoint.tensors.items():
        found = tensor.numpy()
        assert found.shape == tensor.shape
        # MLX may fuse the product and the sum, so that it rounds once where NumPy rounds twice.
        np.testing.assert_allclose(found, np.array(values[name]), rtol=1e-6, atol=1e-7)
        if tensor.shape[1:]:
            assert isinstance(tensor, AffineTensor)
            assert tensor.dtype == f"affine_{bits}bit"
            assert tensor.nbytes == np.prod(tensor.shape) * bits // 8 + 4 * np.prod(tensor.shape) // group_size
            order = np.random.default_rng(0).permutation(tensor.shape[0])
            np.testing.assert_array_equal(tensor.permute_rows(order).numpy(), found[order])


@pytest.mark.parametrize(
    ("bits", "scales", "dtype"),
    [
        (4, mx.bfloat16, "float32"),
        (4, mx.bfloat16, "bfloat16"),
        (8, mx.float16, "bfloat16"),
        (3, mx.float16, "float16"),
    ],
)
def test_they_run_as_they_are(tmp_path: Path, bits: int, scales: mx.Dtype, dtype: str) -> None:
    write_repository(tmp_path, bits, dtype=scales)
    checkpoint, tokens = open_checkpoint(tmp_path), tuple(range(30))
    scenario = Scenario(((Feed(0, tokens[:20], 20),), *((Feed(0, (token,), 1),) for token in tokens[20:])))
    graph = select_rows(build(checkpoint.config), "logits")
    result = check(
        Case("", checkpoint.config, graph, checkpoint.tensors, scenario), BACKEND, ExecutorOptions(dtype=dtype)
    )
    assert result.status == "pass", result


def test_other_backends_unpack_them(tmp_path: Path) -> None:
    write_repository(tmp_path)
    tokens = list(range(40))
    found, expected = (
        mp.load(tmp_path, backend=name, dtype="float32").logits(tokens) for name in ("numba", "reference")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_module_may_have_its_own_bits(tmp_path: Path) -> None:
    write_repository(tmp_path, 4, 64)
    eight = tmp_path / "eight"
    eight.mkdir()
    write_repository(eight, 8, 32)
    mixed = stored(tmp_path) | {name: array for name, array in stored(eight).items() if name.startswith("lm_head")}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), mixed)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization"]["lm_head"] = {"group_size": 32, "bits": 8}
    config["quantization_config"] = config["quantization"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = open_checkpoint(tmp_path).tensors
    assert tensors["lm_head.weight"].dtype == "affine_8bit"
    assert tensors["model.embed_tokens.weight"].dtype == "affine_4bit"
    np.testing.assert_array_equal(
        tensors["lm_head.weight"].numpy(), open_checkpoint(eight).tensors["lm_head.weight"].numpy()
    )


@pytest.mark.parametrize(
    "quantization",
    [
        {"group_size": 64, "bits": 7},
        {"group_size": 16, "bits": 4},
        {"group_size": 64.0, "bits": 4},
        {"group_size": 64, "bits": True},
        {"group_size": 64},
        {"group_size": 32, "bits": 4, "mode": "mxfp4"},
        {"bits": "4", "group_size": 64},
    ],
)
def test_what_is_not_supported_is_refused(tmp_path: Path, quantization: Any) -> None:
    write_repository(tmp_path, changes={"quantization": quantization, "quantization_config": None})
    with pytest.raises(ConfigError, match="has mode="):
        open_checkpoint(tmp_path)


def test_an_entry_that_is_no_object_is_refused(tmp_path: Path) -> None:
    write_repository(tmp_path, changes={"quantization": [4], "quantization_config": None})
    with pytest.raises(ConfigError, match="must be an object"):
        open_checkpoint(tmp_path)


def test_another_format_s_entry_is_refused(tmp_path: Path) -> None:
    write_repository(tmp_path, changes={"quantization_config": {"quant_method": "awq"}})
    with pytest.raises(ConfigError, match="only MLX's are supported"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("broken", ["scales", "biases", "narrow scales", "short biases", "integer scales", "bits"])
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, broken: str) -> None:
    write_repository(tmp_path, changes={"quantization": {"group_size": 64, "bits": 8}} if broken == "bits" else None)
    if broken == "bits":
        config = json.loads((tmp_path / "config.json").read_text())
        config["quantization_config"] = config["quantization"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    path = str(tmp_path / "model.safetensors")
    tensors = stored(tmp_path)
    scales, biases = "model.layers.1.mlp.up_proj.scales", "model.layers.1.mlp.up_proj.biases"
    match broken:
        case "scales":
            del tensors[scales]
        case "biases":
            del tensors[biases]
        case "narrow scales":
            tensors[scales] = tensors[scales][:, :1]
        case "short biases":
            tensors[biases] = tensors[biases][:3]
        case "integer scales":
            tensors[scales] = mx.zeros(tensors[scales].shape, mx.uint32)
    mx.save_safetensors(path, tensors)
    with pytest.raises(CheckpointError, match=r"is missing|does not fit its scales"):
        open_checkpoint(tmp_path)


def test_scales_of_a_matrix_that_is_not_packed_are_not_dropped(tmp_path: Path) -> None:
    write_repository(tmp_path)
    tensors = stored(tmp_path)
    name = "model.layers.1.mlp.up_proj"
    codes, scales, biases = (tensors[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
    tensors[f"{name}.weight"] = mx.dequantize(codes, scales, biases)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    with pytest.raises(CheckpointError, match=r"up_proj\.(scales|biases)"):
        mp.load(tmp_path, backend="reference")


def test_uint32_tensors_of_others_are_refused(tmp_path: Path) -> None:
    write_repository(tmp_path, changes={"quantization": None, "quantization_config": None})
    with pytest.raises(CheckpointError, match="is uint32, and no file says how it is packed"):
        open_checkpoint(tmp_path)


def test_to_quantize_them_again_is_refused(tmp_path: Path) -> None:
    write_repository(tmp_path)
    with pytest.raises(
        InputError, match=r"quantized already \(affine_4bit, bfloat16\)|quantized already \(affine_4bit\)"
    ):
        open_checkpoint(tmp_path, quantize="q4_0")


def test_the_default_dtype_is_the_scales_own_on_a_gpu(tmp_path: Path) -> None:
    write_repository(tmp_path)
    assert stored_dtype(open_checkpoint(tmp_path).tensors.values()) == "bfloat16"
    floats = np.zeros((2, 4), np.float32)
    assert stored_dtype([DenseTensor("a", "float32", floats), DenseTensor("v", "float16", floats[0])]) == "float32"

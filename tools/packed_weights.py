"""Writes folders of packed weights in the layouts of AutoAWQ, AutoGPTQ, llm-compressor, mlx-lm and FP8 exporters.

For tests of the readers: weights are rounded to the nearest code, and only the layout is that of the formats. Needs
torch and MLX.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

__all__ = ["PACKED", "pack_raw_fp8", "write_packed"]

Floats = NDArray[np.float32]
_GROUP = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def write_packed(folder: Path, kind: str, config: Mapping[str, Any], tensors: Mapping[str, Floats]) -> None:
    """Write a folder: matrices of the layers as `kind`, one of PACKED, the rest in float32. config: `config.json`."""
    how, pack = PACKED[kind]
    stored: dict[str, torch.Tensor] = {}
    for name, values in tensors.items():
        module = name.removesuffix(".weight")
        if "_proj." in name or ".experts." in name:
            stored |= {f"{module}.{part}": tensor.contiguous() for part, tensor in pack(values).items()}
        else:
            stored[name] = torch.from_numpy(values)
    if kind == "mlx 4 bits":
        stored = _stacked(stored)
    folder.mkdir(parents=True)
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, **how}))


def pack_raw_fp8(folder: Path) -> None:
    """Convert the matrices of the layers in a raw folder to float8_e4m3, except routers."""
    path, params = folder / "consolidated.safetensors", json.loads((folder / "params.json").read_text())
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(path).items():
        if not name.startswith("layers.") or tensor.ndim == 1 or ".gate." in name:
            stored[name] = tensor
            continue
        module, made = name.removesuffix(".weight"), _fp8(tensor.numpy())
        stored[name] = made["weight"]
        stored[f"{module}.qscale_weight"] = made["weight_scale_inv"]
        stored[f"{module}.qscale_act"] = made["activation_scale"]
    save_file(stored, path)
    params["quantization"] = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    (folder / "params.json").write_text(json.dumps(params))


def _stacked(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stack the experts of each layer in the tensors that mlx-lm has for them."""
    made = {name: tensor for name, tensor in stored.items() if ".experts." not in name}
    first = [name for name in stored if ".experts.0." in name]
    for name in first:
        before, after = name.split(".experts.0.")
        matrix, part = after.split(".")
        each = [
            tensor
            for other, tensor in stored.items()
            if other.startswith(f"{before}.experts.") and other.endswith(after)
        ]
        module = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}[matrix]
        made[f"{before}.switch_mlp.{module}.{part}"] = torch.stack(each)
    return made


def _codes(values: Floats) -> tuple[NDArray[np.uint32], Floats]:
    """Quantize [rows, columns] to codes 0 .. 15 around 8, with scales [rows, columns / 32]."""
    groups = values.reshape(len(values), -1, _GROUP)
    scales = np.abs(groups).max(axis=2).astype(np.float16).astype(np.float32) / 7
    scales = np.where(scales > 0, scales, 1).astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint(groups / scales[:, :, None]) + 8, 0, 15)
    return codes.reshape(values.shape).astype(np.uint32), scales


def _words(codes: NDArray[np.uint32], order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Pack eight codes of a row into each word, from the lowest bits on."""
    eights = codes.reshape(len(codes), -1, 8)[:, :, list(order)]
    words = (eights << (4 * np.arange(8, dtype=np.uint32))).sum(axis=2, dtype=np.uint32)
    return torch.from_numpy(words.view(np.int32))


def _awq(values: Floats) -> dict[str, torch.Tensor]:
    codes, scales = _codes(values)
    zeros = np.full(scales.T.shape, 8, np.uint32)
    return {
        "qweight": _words(np.ascontiguousarray(codes.T), _AWQ_ORDER),
        "qzeros": _words(zeros, _AWQ_ORDER),
        "scales": torch.from_numpy(scales.T.copy()).half(),
    }


def _gptq(values: Floats) -> dict[str, torch.Tensor]:
    codes, scales = _codes(values)
    zeros = np.full(scales.T.shape, 7, np.uint32)  # the format stores zeros minus 1
    return {
        "qweight": _words(codes).T,
        "qzeros": _words(zeros),
        "scales": torch.from_numpy(scales.T.copy()).half(),
        "g_idx": torch.arange(values.shape[1], dtype=torch.int32) // _GROUP,
    }


def _compressed(values: Floats) -> dict[str, torch.Tensor]:
    codes, scales = _codes(values)
    return {
        "weight_packed": _words(codes),
        "weight_scale": torch.from_numpy(scales),
        "weight_shape": torch.tensor(values.shape),
    }


def _fp8(values: Floats) -> dict[str, torch.Tensor]:
    scale = float(np.abs(values).max()) / 448
    codes = torch.from_numpy(values / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": torch.tensor(scale), "activation_scale": torch.tensor(1.0)}


def _mlx(values: Floats) -> dict[str, torch.Tensor]:
    codes, scales, biases = mx.quantize(mx.array(values), _GROUP, 4)
    numbers = {"scales": torch.from_numpy(np.array(scales)), "biases": torch.from_numpy(np.array(biases))}
    return {"weight": torch.from_numpy(np.array(codes)), **numbers}


_FOUR: dict[str, Any] = {"bits": 4, "group_size": _GROUP}
_INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": _GROUP}
_W4A16 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": _INT4}},
    "ignore": ["lm_head"],
}
PACKED: dict[str, tuple[dict[str, Any], Callable[[Floats], dict[str, torch.Tensor]]]] = {
    "mlx 4 bits": ({"quantization": _FOUR}, _mlx),
    "awq": ({"quantization_config": {"quant_method": "awq", **_FOUR, "zero_point": True, "version": "gemm"}}, _awq),
    "gptq": ({"quantization_config": {"quant_method": "gptq", **_FOUR, "desc_act": False, "sym": False}}, _gptq),
    "w4a16": ({"quantization_config": _W4A16}, _compressed),
    "fp8": ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}}, _fp8),
}
"""By kind: the settings for `config.json`, and the function that turns a matrix into its stored tensors."""

"""Adapters with random values, written in every format but PEFT's own code, by the formats' rules.

changes = random_changes(config, ["model.layers.0.self_attn.q_proj.weight"], rank=3, rng=rng)
write_peft(folder, changes, scale=2.0)
write_gguf(path, config, changes, alpha=6.0)
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from numpy.typing import NDArray
from weights.files import bfloat16, gguf_name, interleaved, raw_name, shapes, write_safetensors

from mistral_portable.config import MistralConfig

__all__ = [
    "HEAD",
    "TABLE",
    "Change",
    "delta",
    "linears",
    "random_changes",
    "write_gguf",
    "write_mlx",
    "write_peft",
    "write_raw",
]

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"

Change = tuple[NDArray[np.float32], NDArray[np.float32]]
"""The down and the up matrix, [rank, inputs] and [outputs, rank], of a linear layer; q and k rows half-split."""


def linears(config: MistralConfig) -> list[str]:
    """The names of all linear layers but experts, the embedding table and the head."""
    return [name for name, shape in shapes(config).items() if len(shape) == 2 and "experts" not in name]


def random_changes(
    config: MistralConfig, names: Sequence[str], rank: int, rng: np.random.Generator
) -> dict[str, Change]:
    """A change of each weight, near its size; that of the embedding table as if it were a linear layer."""
    found = {}
    for name in names:
        rows, columns = shapes(config)[name]
        down, up = rng.normal(0, 0.2, (rank, columns)), rng.normal(0, 0.2, (rows, rank))
        found[name] = down.astype(np.float32), up.astype(np.float32)
    return found


def delta(change: Change, scale: float) -> NDArray[np.float64]:
    """The matrix that a change adds to its weight, float64."""
    down, up = change
    return scale * (up.astype(np.float64) @ down.astype(np.float64))


def write_peft(
    folder: Path,
    changes: Mapping[str, Change],
    scale: float = 2.0,
    dtype: str = "float32",
    whole: Mapping[str, NDArray[np.float32]] | None = None,
    **settings: Any,
) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors`; whole: tables that are saved whole."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, NDArray[Any]] = {}
    rank = 1
    for name, (down, up) in changes.items():
        rank, module = len(down), f"base_model.model.{name.removesuffix('.weight')}"
        if name == TABLE:
            tensors |= {f"{module}.lora_embedding_A": up.T, f"{module}.lora_embedding_B": down.T}
        else:
            tensors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    tensors |= {f"base_model.model.{name}": values for name, values in (whole or {}).items()}
    write_safetensors(folder / "adapter_model.safetensors", {n: _stored(t, dtype) for n, t in tensors.items()})
    usual = {"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank, "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(usual | settings))
    return folder


def write_gguf(
    path: Path,
    config: MistralConfig,
    changes: Mapping[str, Change],
    alpha: float | None,
    quantization: str = "F32",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a GGUF adapter as llama.cpp's `convert_lora_to_gguf.py` does; alpha: None leaves the key out."""
    writer = GGUFWriter(path, "llama")
    for key, value in ({"general.type": "adapter", "adapter.type": "lora"} | dict(metadata or {})).items():
        writer.add_string(key, value)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    kind = GGMLQuantizationType[quantization]
    for name, (down, up) in changes.items():
        pair = (up, down.T) if name == TABLE else (down, interleaved(name, up, config))
        for side, matrix in zip("ab", pair, strict=True):
            block = quants.quantize(np.ascontiguousarray(matrix), kind)
            writer.add_tensor(f"{gguf_name(name)}.lora_{side}", block, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_mlx(folder: Path, changes: Mapping[str, Change], scale: float = 2.0, **settings: Any) -> Path:
    """Write `adapter_config.json` and `adapters.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, NDArray[Any]] = {}
    for name, (down, up) in changes.items():
        module = name.removesuffix(".weight")
        pair = (up, down) if name == TABLE else (down.T, up.T)
        tensors |= {f"{module}.lora_a": pair[0], f"{module}.lora_b": pair[1]}
    write_safetensors(folder / "adapters.safetensors", tensors)
    usual = {"fine_tune_type": "lora", "lora_parameters": {"scale": scale, "dropout": 0.0}, "model": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(usual | settings))
    return folder


def write_raw(folder: Path, config: MistralConfig, changes: Mapping[str, Change], scaling: float | None = None) -> Path:
    """Write `lora.safetensors`, and with `scaling` a `params.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, NDArray[Any]] = {}
    for name, (down, up) in changes.items():
        module = raw_name(name).removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": interleaved(name, up, config)}
    write_safetensors(folder / "lora.safetensors", tensors)
    if scaling is not None:
        (folder / "params.json").write_text(json.dumps({"dim": 64, "lora": {"rank": 3, "scaling": scaling}}))
    return folder


def _stored(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    values = np.ascontiguousarray(values)
    return bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)

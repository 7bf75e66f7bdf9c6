"""HF checkpoints: `config.json` and one or more safetensors files, mapped lazily."""

import json
import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.tokenizer.source import TokenizerFile
from mistral_portable.weights.mlx_quantized import PACKED, affine_tensors
from mistral_portable.weights.names import from_hf
from mistral_portable.weights.source import DENSE, Checkpoint, DenseTensor, Tensor, listing, map_file

__all__ = ["INDEX", "open_safetensors", "weight_files"]

INDEX = "model.safetensors.index.json"


def open_safetensors(folder: Path, file: Path | None = None) -> Checkpoint:
    """Open an HF folder, or with `file` only that weight file and the `config.json` beside it.

    Without an index all `*.safetensors` but `consolidated*` (Mistral's own names) are read.

    Raises CheckpointError for missing shards, corrupt files and tensors stored twice; ConfigError for a config
    that is no plain Mistral's.
    """
    config = _config(folder / "config.json")
    quantization = config.extra.get("quantization") or {}
    index = {} if file else _index(folder / INDEX)
    files = [file] if file else _shards(folder, index) if index else weight_files(folder)
    tensors: dict[str, Tensor] = {}
    where: dict[str, Path] = {}
    metadata: dict[str, object] = {}
    for shard in files:
        header, stored = _read(shard, packed=bool(quantization))
        metadata |= header
        for tensor in stored:
            if index and index.get(tensor.name) != shard.name:
                continue
            name = from_hf(tensor.name)
            if name in where:
                raise CheckpointError(f"{name!r} is stored twice: in {where[name]} and in {shard}")
            tensors[name] = DenseTensor(name, tensor.dtype, tensor.array)
            where[name] = shard
    if quantization:
        tensors = affine_tensors(tensors, quantization, str(folder))
    tokenizer, notices = _tokenizer(folder)
    return Checkpoint(folder, "safetensors", config, tensors, tokenizer, notices, metadata)


def weight_files(folder: Path) -> list[Path]:
    """The `*.safetensors` files of a folder, without Mistral's own `consolidated*`."""
    return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("consolidated"))


def _config(path: Path) -> MistralConfig:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; safetensors files need the config.json of their repository")
    config = MistralConfig.from_file(path)
    kind = config.extra.get("model_type", "mistral")
    if kind != "mistral":
        raise ConfigError(f"{path}: model_type={reprlib.repr(kind)} is not supported: only 'mistral' is")
    other = config.extra.get("quantization_config")  # AWQ, GPTQ, FP8, ...; mlx-lm repeats its own there
    if other and other != config.extra.get("quantization"):
        raise ConfigError(
            f"{path}: quantization_config={reprlib.repr(other)}: of quantized safetensors only MLX's are supported; "
            "use the original checkpoint or a GGUF file"
        )
    return config


def _index(path: Path) -> dict[str, str]:
    """Stored tensor name -> file name; empty if there is no index."""
    if not path.exists():
        return {}
    try:
        weight_map = json.loads(bytes(map_file(path)))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors index: {error!r}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map must be a non-empty object")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w][\w.-]*\.safetensors", file):
            raise CheckpointError(
                f"{path}: {name!r} lies in {reprlib.repr(file)}, which is no safetensors file of this folder"
            )
    return weight_map


def _shards(folder: Path, index: Mapping[str, str]) -> list[Path]:
    files = [folder / name for name in sorted(set(index.values()))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(f"{folder}: shards that {INDEX} names are missing: {listing(missing)}")
    return files


def _read(path: Path, packed: bool) -> tuple[dict[str, str], list[DenseTensor]]:
    """`__metadata__` and the tensors of one file; uint32 is for `packed` ones only.

    Layout: uint64 header size, a JSON header {name: {dtype, shape, data_offsets}}, then the data.
    """
    from safetensors import SafetensorError, safe_open

    data, known = map_file(path), DENSE | (PACKED if packed else {})
    try:
        with safe_open(path, framework="np"):  # Rust checks the header: its size, the offsets, the gaps
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])
        metadata = header.pop("__metadata__", None) or {}  # MLX writes null
        others = [f"{name!r} ({entry['dtype']})" for name, entry in header.items() if entry["dtype"] not in known]
        if others:
            raise CheckpointError(f"{path}: only {', '.join(known)} tensors are supported, not {listing(others)}")
        return metadata, [_tensor(data, 8 + size, name, entry, known) for name, entry in header.items()]
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file: {error}") from error


def _tensor(
    data: Any, start: int, name: str, entry: Mapping[str, Any], known: Mapping[str, tuple[str, type[np.generic]]]
) -> DenseTensor:
    dtype, stored = known[entry["dtype"]]
    shape = tuple(entry["shape"])
    array = np.frombuffer(data, stored, math.prod(shape), start + entry["data_offsets"][0])
    return DenseTensor(name, dtype, array.reshape(shape))


def _tokenizer(folder: Path) -> tuple[TokenizerFile | None, tuple[str, ...]]:
    """`tekken.json`, else the last `tokenizer.model*` by name: v3 before v1."""
    files = [folder / "tekken.json", *sorted(folder.glob("tokenizer.model*"), reverse=True)]
    for path in files:
        if path.is_file():
            return TokenizerFile(path), ()
    if (folder / "tokenizer.json").is_file():
        return None, (
            f"{folder} has only a tokenizer.json: text needs Mistral's own tokenizer file "
            "(tokenizer.model* or tekken.json); put it into the folder.",
        )
    return None, ()

"""HF checkpoints: `config.json` and one or more safetensors files, mapped lazily."""

import json
import re
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path

from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError, ConfigError, TokenizerError
from mistral_portable.tokenizer.folder import read_object
from mistral_portable.tokenizer.source import TokenizerFile, TokenizerFolder
from mistral_portable.weights.experts import split_experts
from mistral_portable.weights.hf_quantized import combine_packed, quantization
from mistral_portable.weights.names import from_hf
from mistral_portable.weights.safetensors_file import PACKED_INTEGERS, read_safetensors
from mistral_portable.weights.source import DENSE, Checkpoint, DenseTensor, listing, map_file
from mistral_portable.weights.windows import inferred_windows

__all__ = ["INDEX", "open_safetensors", "tokenizer_name", "weight_files"]

INDEX = "model.safetensors.index.json"
_KINDS = ("mistral", "ministral", "ministral3", "mixtral")
"""Supported values of `model_type`; for multimodal models that of `text_config`."""


def open_safetensors(folder: Path, file: Path | None = None) -> Checkpoint:
    """Open an HF folder: `config.json` and its safetensors files. file: the only weight file to read.

    Without an index all `*.safetensors` files are read except `consolidated*`, Mistral's own.

    Raises CheckpointError for missing shards, corrupt files and tensors stored twice; ConfigError for models of other
    architectures.
    """
    config, inferred = _config(folder / "config.json")
    packed = quantization(config, str(folder))
    index = {} if file else _index(folder / INDEX)
    files = [file] if file else _shards(folder, index) if index else weight_files(folder)
    stored: dict[str, DenseTensor] = {}
    where: dict[str, Path] = {}
    metadata: dict[str, object] = {}
    for shard in files:
        header, of_shard = read_safetensors(map_file(shard), str(shard), DENSE | (PACKED_INTEGERS if packed else {}))
        metadata |= header
        for tensor in of_shard:
            if index and index.get(tensor.name) != shard.name:
                continue
            name = from_hf(tensor.name)
            if name in where:
                raise CheckpointError(f"{name!r} is stored twice: in {where[name]} and in {shard}")
            stored[name] = DenseTensor(name, tensor.dtype, tensor.array)
            where[name] = shard
    split = split_experts(stored, config.num_local_experts, str(folder))
    tensors, unpacked = combine_packed(split, packed, str(folder))
    notices = inferred + unpacked
    return Checkpoint(folder, "safetensors", config, tensors, _tokenizer(folder), notices, metadata, _ends(folder))


def weight_files(folder: Path) -> list[Path]:
    """The `*.safetensors` files of a folder, without Mistral's own `consolidated*`, sorted."""
    return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("consolidated"))


def _config(path: Path) -> tuple[MistralConfig, tuple[str, ...]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; safetensors files need the config.json of their repository")
    config = MistralConfig.from_file(path)
    kind = config.extra.get("model_type", "mistral")
    if kind not in _KINDS:
        raise ConfigError(f"{path}: model_type={reprlib.repr(kind)} is not supported: {', '.join(_KINDS)} are")
    return inferred_windows(config, stated=True)


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
                f"{path}: {name!r} is in {reprlib.repr(file)}, which is not a safetensors file of this folder"
            )
    return weight_map


def _shards(folder: Path, index: Mapping[str, str]) -> list[Path]:
    files = [folder / name for name in sorted(set(index.values()))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(f"{folder}: shards that {INDEX} names are missing: {listing(missing)}")
    return files


def _tokenizer(folder: Path) -> TokenizerFile | TokenizerFolder | None:
    name = tokenizer_name([path.name for path in folder.iterdir() if path.is_file()])
    if name:
        return TokenizerFile(folder / name)
    return TokenizerFolder(folder) if (folder / "tokenizer.json").is_file() else None


def _ends(folder: Path) -> tuple[int, ...]:
    """The ids of `eos_token_id` in generation_config.json; none if it cannot be read, or is no list of ids."""
    try:
        ends = read_object(folder / "generation_config.json").get("eos_token_id")
    except TokenizerError:
        return ()
    return tuple(id for id in (ends if isinstance(ends, list) else [ends]) if type(id) is int and id >= 0)


def tokenizer_name(names: Collection[str]) -> str | None:
    """The tokenizer file among the names in a folder: `tekken.json`, else the last `tokenizer.model*` (v3, not v1)."""
    if "tekken.json" in names:
        return "tekken.json"
    return max((name for name in names if name.startswith("tokenizer.model")), default=None)

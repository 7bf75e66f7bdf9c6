"""The files of a Hugging Face folder that hold its weights, in the order in which transformers looks for them.

1. `model.safetensors`
2. the shards that `model.safetensors.index.json` names
3. all other `*.safetensors`, which transformers does not look for: shards without an index, and files of any name
4. `pytorch_model.bin`
5. the shards that `pytorch_model.bin.index.json` names

Copies in another type (`model.fp16.safetensors`) are so left alone, and so are `consolidated*`, Mistral's own, and the
files of adapters, which are no models.
"""

import json
import re
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path

from mistral_portable.errors import CheckpointError
from mistral_portable.weights.adapter_files import adapter_files
from mistral_portable.weights.source import listing, map_file

__all__ = ["TORCH_FILES", "read_index", "weight_names"]

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TORCH, _TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_SHARD = {_INDEX: r"\w[\w.-]*\.safetensors", _TORCH_INDEX: r"\w[\w.-]*\.bin"}

TORCH_FILES = ("pytorch_model*.bin", _TORCH_INDEX)
"""Patterns of the files of 4 and 5."""


def weight_names(names: Collection[str]) -> list[str]:
    """The weight files among the names in a folder, or their index alone; empty if there are none.

    >>> weight_names(["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"])
    ['model.safetensors']
    """
    no_models = {*adapter_files(names), *(name for name in names if name.startswith("consolidated"))}
    others = [name for name in names if name.endswith(".safetensors") and name not in no_models]
    for found in ([_WHOLE], [_INDEX], sorted(others), [_TORCH], [_TORCH_INDEX]):
        if found and all(name in names for name in found):
            return found
    return []


def read_index(folder: Path, names: Collection[str]) -> tuple[list[Path], Mapping[str, str]]:
    """The weight files of a folder, and which of them holds a tensor, by stored name, as far as an index tells.

    names: the result of `weight_names`. Raises CheckpointError for missing shards and for an index that is damaged or
    points outside the folder.
    """
    if not _SHARD.keys() & set(names):
        return [folder / name for name in names], {}
    (index,) = names
    where = _weight_map(folder / index, _SHARD[index])
    files = [folder / name for name in sorted(set(where.values()))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(f"{folder}: shards that {index} names are missing: {listing(missing)}")
    return files, where


def _weight_map(path: Path, shard: str) -> dict[str, str]:
    """Stored tensor name -> file name."""
    try:
        weight_map = json.loads(bytes(map_file(path)))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not an index of weights: {error!r}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map must be a non-empty object")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(shard, file):
            raise CheckpointError(f"{path}: {name!r} is in {reprlib.repr(file)}, which is not a shard in this folder")
    return weight_map

"""The adapters of mistral-finetune and mistral-inference: `lora.safetensors`, with or without a `params.json`.

Source of the format: mistral-inference `lora.py` and mistral-finetune `checkpointing.py`: names of Mistral's own
checkpoints, rows of q and k for interleaved RoPE, `weight + scaling * lora_B @ lora_A`, where scaling is 2 by default.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistral_portable.adapters.adapter import Adapter
from mistral_portable.adapters.pieces import Piece, assemble
from mistral_portable.adapters.rows import half_split_rows
from mistral_portable.adapters.settings import number, read_settings
from mistral_portable.config import MistralConfig
from mistral_portable.config.checks import show
from mistral_portable.errors import CheckpointError
from mistral_portable.weights import DenseTensor
from mistral_portable.weights.names import from_raw
from mistral_portable.weights.safetensors_file import read_safetensors
from mistral_portable.weights.source import map_file

__all__ = ["open_raw_adapter"]

_SCALING = 2.0
_SIDES: Mapping[str, Any] = {"lora_A": "down", "lora_B": "up"}


def open_raw_adapter(path: Path, weights: Path, config: MistralConfig) -> Adapter:
    """Open an adapter of mistral-finetune's. path: what the caller gave. config: the model's.

    The scale is `lora.scaling` of a `params.json` in the same folder, else 2.

    Raises CheckpointError for settings, tensors and values that are not supported or do not fit.
    """
    data = map_file(weights)
    pieces = [_piece(tensor, config) for tensor in read_safetensors(data, str(weights))[1]]
    factor = _scaling(weights.parent / "params.json")
    return assemble(path, pieces, len(data), config, lambda weight, rank: factor)


def _piece(tensor: DenseTensor, config: MistralConfig) -> Piece:
    module, _, side = tensor.name.removesuffix(".weight").rpartition(".")
    weight = from_raw(f"{module}.weight")
    # Mistral's code changes the linear layers of the decoder only.
    if side not in _SIDES or not tensor.name.endswith(".weight") or not weight.startswith("model.layers."):
        return Piece(tensor.name, "whole", tensor)  # `assemble` says what is wrong with it
    rows = half_split_rows(tensor, weight, config) if side == "lora_B" else tensor
    return Piece(weight, _SIDES[side], rows)


def _scaling(path: Path) -> float:
    given = read_settings(path).get("lora") if path.exists() else None
    if given is None:
        return _SCALING
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{path}: lora={show(given)} is not an object; save the adapter again")
    return number(path, "lora.scaling", given.get("scaling", _SCALING))

"""mlx-lm's adapters: `adapter_config.json` with `adapters.safetensors`.

Source of the format: mlx-lm 0.32, `tuner/lora.py` and `tuner/utils.py`: `x @ lora_a @ lora_b`, so both matrices are
those of LowRank, transposed. The factor is `scale` alone: older files have an `alpha` beside it, which mlx-lm ignores.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mistral_portable.adapters.adapter import Adapter
from mistral_portable.adapters.pieces import HEAD, TABLE, Piece, assemble
from mistral_portable.adapters.settings import number, positive, read_settings
from mistral_portable.config import MistralConfig
from mistral_portable.config.checks import show
from mistral_portable.errors import CheckpointError
from mistral_portable.weights import DenseTensor
from mistral_portable.weights.names import from_hf
from mistral_portable.weights.safetensors_file import read_safetensors
from mistral_portable.weights.source import map_file

__all__ = ["open_mlx"]

_SIDES: Mapping[str, Any] = {"lora_a": "down", "lora_b": "up"}


def open_mlx(path: Path, settings_file: Path, weights: Path, config: MistralConfig) -> Adapter:
    """Open an adapter of mlx-lm's. path: what the caller gave. config: the model's.

    With tied embeddings a change of the table is one of the logits, too, as mlx-lm computes it.

    Raises CheckpointError for settings, tensors and values that are not supported or do not fit.
    """
    settings = read_settings(settings_file)
    kind = settings.get("fine_tune_type", "lora")
    if kind != "lora":
        raise CheckpointError(
            f"{settings_file}: fine_tune_type={show(kind)} is not supported, 'lora' is; run mlx_lm.fuse on it"
        )
    given = settings.get("lora_parameters")
    if not isinstance(given, Mapping) or "scale" not in given:
        raise CheckpointError(
            f"{settings_file}: lora_parameters={show(given)} has no scale, which mlx-lm needs, too; add the one that "
            "it was trained with"
        )
    factor = number(settings_file, "lora_parameters.scale", given["scale"])
    wanted = positive(settings_file, "lora_parameters.rank", given["rank"]) if "rank" in given else None

    def scale(weight: str, rank: int) -> float:
        if wanted not in (None, rank):
            raise CheckpointError(
                f"{settings_file}: lora_parameters.rank={wanted}, but {weight} has the rank {rank}; save it again"
            )
        return factor

    data = map_file(weights)
    pieces = [_piece(weights, tensor) for tensor in read_safetensors(data, str(weights))[1]]
    adapter = assemble(path, pieces, len(data), config, scale)
    if config.tie_word_embeddings and TABLE in adapter.low_rank:
        head = adapter.low_rank[TABLE].transposed()
        return replace(adapter, low_rank={**adapter.low_rank, HEAD: head})
    return adapter


def _piece(path: Path, tensor: DenseTensor) -> Piece:
    module, _, kind = tensor.name.rpartition(".")
    if kind == "m":
        raise CheckpointError(
            f"{path}: {tensor.name!r:.120}: DoRA is not supported; make a model of it with mlx_lm.fuse"
        )
    if kind not in _SIDES:
        return Piece(tensor.name, "whole", tensor)  # `assemble` says what is wrong with it
    return Piece(from_hf(f"{module}.weight"), _SIDES[kind], tensor, transposed=True)

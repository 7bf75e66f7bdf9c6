"""Tensors that hold the matrices of all experts of a layer, split into one matrix per expert under its HF name."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from numpy.typing import NDArray

from mistral_portable.errors import CheckpointError
from mistral_portable.weights.source import DenseTensor, Tensor

__all__ = ["expert_names", "split_experts", "stacked_name"]

_LAYER = r"(?P<layer>model\.layers\.\d+)"
_MLX = re.compile(rf"{_LAYER}\.block_sparse_moe\.switch_mlp\.(?P<matrix>gate|up|down)_proj\.(?P<kind>\w+)", re.ASCII)
_HF = re.compile(rf"{_LAYER}\.mlp\.experts\.(?P<matrix>gate_up|down)_proj", re.ASCII)
_RAW = re.compile(rf"{_LAYER}\.block_sparse_moe\.(?P<matrix>w[123])", re.ASCII)
_GGUF = re.compile(r"blk\.(?P<layer>\d+)\.ffn_(?P<matrix>gate|up|down)_exps\.weight", re.ASCII)
_EXPERT = re.compile(
    r"model\.layers\.(?P<layer>\d+)\.block_sparse_moe\.experts\.\d+\.(?P<matrix>w[123])\.weight", re.ASCII
)
_MATRICES = {"gate": "w1", "up": "w3", "down": "w2"}
_OF_MATRIX = {matrix: name for name, matrix in _MATRICES.items()}


def expert_names(stored: str, count: int) -> list[str] | None:
    """The HF names of the `count` matrices in a GGUF tensor of experts; None for other tensors.

    Example: `blk.0.ffn_up_exps.weight` holds `model.layers.0.block_sparse_moe.experts.0.w3.weight` and so on.
    """
    match = _GGUF.fullmatch(stored)
    if match is None:
        return None
    layer, matrix = f"model.layers.{match['layer']}", _MATRICES[match["matrix"]]
    return [_name(layer, expert, matrix, "weight") for expert in range(count)]


def stacked_name(name: str) -> str | None:
    """The name of the GGUF tensor that holds an expert's matrix, by its HF name; None for other tensors."""
    match = _EXPERT.fullmatch(name)
    return f"blk.{match['layer']}.ffn_{_OF_MATRIX[match['matrix']]}_exps.weight" if match else None


_Stored = TypeVar("_Stored", bound=Tensor)


def split_experts(tensors: Mapping[str, _Stored], count: int, source: str) -> dict[str, _Stored | DenseTensor]:
    """Split tensors that hold all experts of a layer into one matrix per expert; other tensors stay as they are.

    Nothing is copied. With E experts, intermediate size I and hidden size H, the layouts are:

    MLX: `...switch_mlp.up_proj.weight` [E, I, H]; packed ones have scales and biases beside it.
    transformers 5, as its modules hold them: `...experts.gate_up_proj` [E, 2 I, H].
    Mixtral's first raw files: `...block_sparse_moe.w1`, `w2` and `w3`, each [E I, H].

    Raises CheckpointError, which begins with `source`, if a tensor does not hold `count` experts.
    """
    made: dict[str, _Stored | DenseTensor] = {}
    for name, tensor in tensors.items():
        mlx, hf, raw = (pattern.fullmatch(name) for pattern in (_MLX, _HF, _RAW))
        match = mlx or hf or raw
        if match is None or not isinstance(tensor, DenseTensor):
            made[name] = tensor
            continue
        array = tensor.array
        if raw and count and array.ndim == 2 and len(array) % count == 0:
            array = array.reshape(count, len(array) // count, array.shape[1])
        if array.ndim != 3 or len(array) != count:
            raise CheckpointError(
                f"{source}: {name} has the shape {tensor.shape}, which is not that of {count} experts"
            )
        kind = match["kind"] if mlx else "weight"
        for expert, matrices in enumerate(array):
            for matrix, piece in _pieces(match["matrix"], matrices).items():
                own = _name(match["layer"], expert, matrix, kind)
                made[own] = replace(tensor, name=own, array=piece)
    return made


def _pieces(matrix: str, array: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """One expert's matrices, by HF name, in its slice of the tensor that a file calls `matrix`."""
    half = len(array) // 2
    match matrix:
        case "gate_up":
            return {"w1": array[:half], "w3": array[half:]}
        case "w2":  # in the first raw files: inputs first
            return {"w2": array.T}
        case _:
            return {_MATRICES.get(matrix, matrix): array}


def _name(layer: str, expert: int, matrix: str, kind: str) -> str:
    return f"{layer}.block_sparse_moe.experts.{expert}.{matrix}.{kind}"

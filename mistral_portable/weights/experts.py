"""Experts that a file keeps in one tensor with three axes, taken apart: a matrix for each, by its HF name."""

import re
from collections.abc import Mapping
from dataclasses import replace

from mistral_portable.errors import CheckpointError
from mistral_portable.weights.source import DenseTensor

__all__ = ["apart", "expert_names", "stacked_name"]

_LAYER = r"(?P<layer>model\.layers\.\d+)"
_MLX = re.compile(rf"{_LAYER}\.block_sparse_moe\.switch_mlp\.(?P<matrix>gate|up|down)_proj\.(?P<kind>\w+)", re.ASCII)
_HF = re.compile(rf"{_LAYER}\.mlp\.experts\.(?P<matrix>gate_up|down)_proj", re.ASCII)
_GGUF = re.compile(r"blk\.(?P<layer>\d+)\.ffn_(?P<matrix>gate|up|down)_exps\.weight", re.ASCII)
_EXPERT = re.compile(
    r"model\.layers\.(?P<layer>\d+)\.block_sparse_moe\.experts\.\d+\.(?P<matrix>w[123])\.weight", re.ASCII
)
_MATRICES = {"gate": "w1", "up": "w3", "down": "w2"}
_OF_MATRIX = {matrix: name for name, matrix in _MATRICES.items()}


def expert_names(stored: str, count: int) -> list[str] | None:
    """The names of the `count` experts in a GGUF tensor; None if it holds none.

    `blk.0.ffn_up_exps.weight` holds `model.layers.0.block_sparse_moe.experts.0.w3.weight` and so on.
    """
    match = _GGUF.fullmatch(stored)
    if match is None:
        return None
    layer, matrix = f"model.layers.{match['layer']}", _MATRICES[match["matrix"]]
    return [_name(layer, expert, matrix, "weight") for expert in range(count)]


def stacked_name(name: str) -> str | None:
    """The GGUF tensor that an expert's matrix belongs to; None of other tensors."""
    match = _EXPERT.fullmatch(name)
    return f"blk.{match['layer']}.ffn_{_OF_MATRIX[match['matrix']]}_exps.weight" if match else None


def apart(tensors: Mapping[str, DenseTensor], count: int, source: str) -> dict[str, DenseTensor]:
    """HF and MLX tensors, with those of all experts as a matrix for each; others stay as they are.

    MLX has `...switch_mlp.up_proj.weight` (of packed ones also scales and biases) [E, I, H], transformers 5 within
    itself `...experts.gate_up_proj` [E, 2 I, H]. Raises CheckpointError for another number of experts than `count`.
    """
    made: dict[str, DenseTensor] = {}
    for name, tensor in tensors.items():
        mlx, hf = _MLX.fullmatch(name), _HF.fullmatch(name)
        match = mlx or hf
        if match is None:
            made[name] = tensor
            continue
        if len(tensor.shape) != 3 or len(tensor.array) != count:
            raise CheckpointError(
                f"{source}: {name} has the shape {tensor.shape}, which is not that of {count} experts"
            )
        kind = match["kind"] if mlx else "weight"
        for expert, array in enumerate(tensor.array):
            if match["matrix"] == "gate_up":
                half = len(array) // 2
                pieces = {"w1": array[:half], "w3": array[half:]}
            else:
                pieces = {_MATRICES[match["matrix"]]: array}
            for matrix, piece in pieces.items():
                own = _name(match["layer"], expert, matrix, kind)
                made[own] = replace(tensor, name=own, array=piece)
    return made


def _name(layer: str, expert: int, matrix: str, kind: str) -> str:
    return f"{layer}.block_sparse_moe.experts.{expert}.{matrix}.{kind}"

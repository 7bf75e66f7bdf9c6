"""Pieces of an adapter's files, put together: pairs are matched, and shapes, sizes and values checked.

The reader of each format makes the pieces, under the canonical names of the weights that they change.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mistral_portable.adapters.adapter import Adapter, LowRank
from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError
from mistral_portable.graph import build
from mistral_portable.weights import BlockTensor, DenseTensor
from mistral_portable.weights.source import FLOATS

__all__ = ["Piece", "assemble"]

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""The two weights with a row for each token."""

_EXPERTS = re.compile(r"experts|switch_mlp|_exps\.|block_sparse_moe\.w[123]|ffn_(gate|up|down)\.\d+\.")
_LAYER = re.compile(r"model\.layers\.(\d+)\.", re.ASCII)
_LARGEST = float(np.finfo(np.float16).max)
"""No adapter has larger numbers: with them no executor's sums overflow for those who do not ask for it."""

_CHECKED = 2**22  # values that are looked at together


@dataclass(frozen=True, eq=False)
class Piece:
    """One stored tensor: the down or the up matrix of a weight's change, or the whole weight.

    weight: canonical name. tensor: as stored, under its stored name. transposed: whether its rows are columns
    of LowRank's.
    """

    weight: str
    side: Literal["down", "up", "whole"]
    tensor: DenseTensor | BlockTensor
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the layout of LowRank."""
        return self.tensor.shape[::-1] if self.transposed else self.tensor.shape

    def dense(self) -> DenseTensor:
        """The tensor in the layout of LowRank; blocks are unpacked to float32."""
        tensor = self.tensor
        if isinstance(tensor, BlockTensor):
            tensor = DenseTensor(tensor.name, "float32", tensor.numpy())
        return replace(tensor, array=tensor.array.T) if self.transposed else tensor


def assemble(
    path: Path, pieces: Iterable[Piece], size: int, config: MistralConfig, scale: Callable[[str, int], float]
) -> Adapter:
    """Make an adapter of its pieces.

    size: bytes of the file that holds them. config: the model's. scale: a function of a weight's name and the rank.

    Raises CheckpointError, which begins with `path` and names the tensor, for weights that the model has not, shapes
    that do not fit, a missing half of a pair, types that are no floats, and values that are not finite.
    """
    found: dict[tuple[str, str], Piece] = {}
    for piece in pieces:
        if (piece.weight, piece.side) in found:
            raise CheckpointError(f"{path}: {piece.tensor.name!r:.100} is there twice, for {piece.weight!r:.100}")
        found[piece.weight, piece.side] = piece
    if not found:
        raise CheckpointError(f"{path}: holds no LoRA tensors; save the adapter again")
    # Tensors of torch and GGUF files may share their bytes, as tied tables do; more would take unbounded time.
    if sum(piece.tensor.nbytes for piece in found.values()) > 2 * size:
        raise CheckpointError(
            f"{path}: its tensors overlap: they have more bytes than the file; save the adapter again"
        )
    shapes = _shapes(config)
    for piece in found.values():
        _require_weight(path, piece, shapes)
    whole = {weight: piece for (weight, side), piece in found.items() if side == "whole"}
    for weight, piece in whole.items():
        _require_shape(path, piece, (None, shapes[weight][1]))
        shapes[weight] = piece.shape[0], shapes[weight][1]
    pairs: dict[str, tuple[Piece, Piece]] = {}
    for weight, side in found:
        if side != "whole":
            pairs[weight] = _pair(path, weight, found, shapes)
    for piece in found.values():
        _require_floats(path, piece.tensor)
    return Adapter(
        path,
        {
            weight: LowRank(down.dense(), up.dense(), _finite(path, weight, scale(weight, down.shape[0])))
            for weight, (down, up) in pairs.items()
        },
        {weight: piece.dense() for weight, piece in whole.items()},
    )


def _shapes(config: MistralConfig) -> dict[str, tuple[int, int]]:
    """The matrices that adapters can change, with a head of its own for tied embeddings, too."""
    tensors = {**build(config).tensors, HEAD: (config.vocab_size, config.hidden_size)}
    return {
        name: (shape[0], shape[1]) for name, shape in tensors.items() if len(shape) == 2 and ".experts." not in name
    }


def _require_weight(path: Path, piece: Piece, shapes: Mapping[str, tuple[int, int]]) -> None:
    if piece.weight in shapes and (piece.side != "whole" or piece.weight in (TABLE, HEAD)):
        return
    stored, layer = f"{path}: {piece.tensor.name!r:.120}", _LAYER.match(piece.weight)
    if _EXPERTS.search(piece.weight):
        raise CheckpointError(
            f"{stored} changes experts, which adapters cannot here; merge it with the tool that made it"
        )
    if layer and not any(name.startswith(layer[0]) for name in shapes):
        layers = len({match[1] for name in shapes if (match := _LAYER.match(name))})
        raise CheckpointError(f"{stored}: the model has {layers} layers; the adapter belongs to another model")
    raise CheckpointError(
        f"{stored} is not understood: linear layers, the embedding table and the head can be changed, only the last "
        "two be saved whole; merge the adapter with the tool that made it"
    )


def _require_shape(path: Path, piece: Piece, wanted: tuple[int | None, int | None]) -> None:
    """Raise CheckpointError unless the piece is a matrix with these sizes; None: any but 0."""
    shape = piece.shape
    if len(shape) == 2 and all(size == given if given else size for size, given in zip(shape, wanted, strict=True)):
        return
    needed = tuple(given or "any" for given in (reversed(wanted) if piece.transposed else wanted))
    raise CheckpointError(
        f"{path}: {piece.tensor.name!r:.120} has the shape {piece.tensor.shape}, the model's {piece.weight} needs "
        f"({needed[0]}, {needed[1]}); the adapter belongs to another model"
    )


def _pair(
    path: Path, weight: str, found: Mapping[tuple[str, str], Piece], shapes: Mapping[str, tuple[int, int]]
) -> tuple[Piece, Piece]:
    """Both halves of a change, of one rank and of the weight's shape."""
    down, up = found.get((weight, "down")), found.get((weight, "up"))
    if down is None or up is None:
        half = down or up
        assert half is not None
        raise CheckpointError(f"{path}: {half.tensor.name!r:.120} has no counterpart; save the adapter again")
    outputs, inputs = shapes[weight]
    if weight == TABLE:
        outputs, inputs = inputs, outputs
    _require_shape(path, down, (None, inputs))
    _require_shape(path, up, (outputs, None))
    if down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{path}: the ranks of {down.tensor.name!r:.120} ({down.shape[0]}) and {up.tensor.name!r:.120} "
            f"({up.shape[1]}) differ; save the adapter again"
        )
    return down, up


def _require_floats(path: Path, tensor: DenseTensor | BlockTensor) -> None:
    """Raise CheckpointError unless the tensor has a float type, and values up to _LARGEST; reads all, in parts."""
    if isinstance(tensor, DenseTensor) and tensor.dtype not in FLOATS:
        kinds = ", ".join(sorted(FLOATS))
        raise CheckpointError(f"{path}: {tensor.name!r:.120} is {tensor.dtype}; save the adapter as one of {kinds}")
    if isinstance(tensor, BlockTensor):
        fits = _fit(tensor.numpy())
    else:
        step = max(1, _CHECKED // tensor.shape[1])
        parts = (slice(begin, begin + step) for begin in range(0, tensor.shape[0], step))
        fits = all(_fit(tensor.rows(part).numpy()) for part in parts)
    if not fits:
        raise CheckpointError(
            f"{path}: {tensor.name!r:.120} has values that are not finite, or beyond {_LARGEST:g}; "
            "train or save it again"
        )


def _fit(values: NDArray[np.float32]) -> bool:
    return bool((np.abs(values) <= _LARGEST).all())  # not of NaN


def _finite(path: Path, weight: str, scale: float) -> float:
    if not abs(scale) <= _LARGEST:
        raise CheckpointError(
            f"{path}: the scale {scale!r} of {weight} is beyond {_LARGEST:g}; check the adapter's settings"
        )
    return scale

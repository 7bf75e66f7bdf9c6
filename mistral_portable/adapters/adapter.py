"""Adapter and LowRank: what an adapter's files say, in the names and layouts of the decoder's own weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mistral_portable.weights import DenseTensor

__all__ = ["Adapter", "LowRank"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of a weight: `weight + scale * up @ down`, for the embedding table `weight + scale * (up @ down).T`.

    Example: rank 8 of a q_proj (4096, 4096): down (8, 4096), up (4096, 8).
    """

    down: DenseTensor
    """[rank, inputs] (PEFT's lora_A); for the embedding table [rank, vocab_size] (lora_embedding_A)."""
    up: DenseTensor
    """[outputs, rank] (PEFT's lora_B), q and k rows half-split; for the embedding table [hidden_size, rank]."""
    scale: float

    @property
    def rank(self) -> int:
        """The rank."""
        return self.down.shape[0]

    def transposed(self) -> "LowRank":
        """The change of the transposed weight: an embedding table's as that of a linear layer, and back."""
        return LowRank(_transposed(self.up), _transposed(self.down), self.scale)

    def scaled(self, factor: float) -> "LowRank":
        """The change times a factor."""
        return replace(self, scale=self.scale * factor)

    def permute_rows(self, order: "np.ndarray[tuple[int], np.dtype[np.intp]]") -> "LowRank":
        """The change of a weight whose row i is row `order[i]` of this one."""
        return replace(self, up=self.up.permute_rows(order))


def _transposed(tensor: DenseTensor) -> DenseTensor:
    return DenseTensor(tensor.name, tensor.dtype, tensor.raw().T)


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: its files are mapped, and its values are finite and of the model's shapes.

    A weight is first replaced (`whole`), then changed (`low_rank`): PEFT saves a table in both ways if it was resized.
    With `tie_word_embeddings`, "model.embed_tokens.weight" stands for the lookup alone, "lm_head.weight" for the
    logits; so an adapter may change one of them.
    """

    path: Path
    """The folder, or the file for adapters in one file."""
    low_rank: Mapping[str, LowRank]
    """By canonical name of the weight: "model.layers.0.self_attn.q_proj.weight"."""
    whole: Mapping[str, DenseTensor]
    """Embedding table or lm_head, saved whole; with added tokens it has more rows than the model's."""

"""Embeddings: one vector of a text, pooled from its hidden states as they are made."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mistral_portable.engine.request import Scoring
from mistral_portable.errors import InputError
from mistral_portable.graph.passes import EMBEDDING

__all__ = ["Embedding", "Pooling"]

Pooling = Literal["last", "mean"]
"""Which tokens' hidden states make the vector: the last one's, or the mean of all."""

_LOGITS = 2**24  # numbers; a step makes the logits of the same rows, too, which nobody reads: 64 MiB


class Embedding:
    """The vector of one text, and `scoring`, the request that makes it."""

    def __init__(
        self, tokens: Sequence[int], pooling: Pooling, vocab_size: int, adapters: Sequence[float] = ()
    ) -> None:
        """adapters: as `Request.adapters`. Raises InputError for an unknown pooling."""
        if pooling not in ("last", "mean"):
            raise InputError(f'pooling={pooling!r:.40} must be "last" or "mean"')
        mean = pooling == "mean"
        chunk = max(1, _LOGITS // vocab_size) if mean else None
        self.scoring = Scoring(
            tokens, first=0 if mean else len(tokens) - 1, chunk=chunk, output=EMBEDDING, adapters=adapters
        )
        self._sum: NDArray[np.float64] | None = None

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take further hidden states [rows, hidden_size]."""
        total = rows.sum(axis=0, dtype=np.float64)
        self._sum = total if self._sum is None else self._sum + total

    @property
    def vector(self) -> NDArray[np.float32]:
        """The vector, float32 [hidden_size], of length 1; 0 if the hidden states are. The mean needs no division, as
        its length is changed anyway."""
        assert self._sum is not None
        length = float(np.linalg.norm(self._sum))
        return (self._sum / (length or 1.0)).astype(np.float32)

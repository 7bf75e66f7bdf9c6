"""Guidance: moves logits away from those behind another prompt (`guidance_scale`)."""

import numpy as np
from numpy.typing import NDArray

from mistral_portable.transformers.batch import Batch
from mistral_portable.transformers.cache import Cache
from mistral_portable.transformers.decoder import Decoder
from mistral_portable.transformers.stepwise import Logits, advance, newest, normalized

__all__ = ["Guidance"]


class Guidance:
    """Classifier-free guidance (arXiv:2306.17806): with the log-probabilities p behind the prompt and n behind another
    one, both followed by the answer, the logits become `n + scale * (p - n)`.

    Example: scale 2, a token with p = log 0.4 and n = log 0.2: it becomes log 0.8.
    """

    def __init__(self, decoder: Decoder, cache: Cache, prompt: Batch, scale: float) -> None:
        """cache: empty, for the other prompts, which are the rows of `prompt`."""
        self._decoder, self._cache, self._scale = decoder, cache, scale
        self._next: Batch | None = prompt

    def __call__(self, ids: NDArray[np.int64], logits: Logits) -> Logits:
        """Return other logits [R, vocab]; ids: prompts and answers so far [R, T]. Called once in each step."""
        batch = newest(ids[:, -1].tolist()) if self._next is None else self._next
        self._next = None
        other = normalized(advance(self._decoder, batch, self._cache)[0])
        return other + np.float32(self._scale) * (normalized(logits) - other)

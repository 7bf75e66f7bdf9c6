"""transition_scores(): the score of each token of generated texts, from the scores of all tokens in each step."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mistral_portable.transformers.stepwise import normalized

__all__ = ["transition_scores"]


def transition_scores(
    sequences: NDArray[np.int64],
    scores: Sequence[NDArray[np.float32]],
    beam_indices: NDArray[np.int64] | None,
    normalize: bool,
) -> NDArray[np.float32]:
    """Return the scores of tokens: float32 [B, new], 0 behind the end of a beam.

    sequences: [B, T]. scores: of each step [R, vocab]. beam_indices: the rows of the scores that tokens were chosen by,
    [B, steps], -1 behind the end; None: row r of each step is that of text r. normalize: whether to make the scores of
    a step log-probabilities first.

    >>> scores = [np.float32([[0, 1]]), np.float32([[2, 3]])]
    >>> transition_scores(np.array([[9, 1, 0]]), scores, None, False)
    array([[1., 2.]], dtype=float32)
    """
    steps = np.stack([normalized(step) if normalize else step for step in scores])
    rows = np.tile(np.arange(steps.shape[1])[:, None], len(steps)) if beam_indices is None else beam_indices
    rows = rows[:, : int((rows >= 0).sum(axis=1).max())]
    tokens = sequences[:, sequences.shape[1] - rows.shape[1] :]
    found = steps[np.arange(rows.shape[1]), np.maximum(rows, 0), tokens]
    return np.where(rows < 0, np.float32(0), found)

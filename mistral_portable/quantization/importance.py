"""How much the columns of each matrix matter: what squared errors are multiplied with."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["Importance", "relative"]

Importance = Mapping[str, NDArray[np.float32]]
"""By the HF name of a matrix, float32 [columns], with mean 1. All columns of one that is missing count alike."""

_LEAST = 1e-6  # of the mean: a column that the text never used counts a little all the same


def relative(squares: NDArray[np.float64]) -> NDArray[np.float32]:
    """Mean squares of inputs with mean 1: [5, 2] is [1.43, 0.57]. Raises ValueError for what is no mean square."""
    if not (np.isfinite(squares).all() and (squares >= 0).all()):
        raise ValueError("some mean squares are not finite, or below 0")
    return np.maximum(squares / (squares.mean() or 1.0), _LEAST).astype(np.float32)

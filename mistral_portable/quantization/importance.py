"""Importance: the weights of the squared errors in each column of a matrix."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["Importance", "relative"]

Importance = Mapping[str, NDArray[np.float32]]
"""By the HF name of a matrix: float32 [columns] with mean 1. A matrix without an entry has 1 in all columns."""

_LEAST = 1e-6  # times the mean: columns that the text never used keep a small weight


def relative(squares: NDArray[np.float64]) -> NDArray[np.float32]:
    """Divide mean squares by their mean: [5, 2] gives [1.43, 0.57]. Raises ValueError for values < 0 or not finite."""
    if not (np.isfinite(squares).all() and (squares >= 0).all()):
        raise ValueError("some mean squares are not finite, or below 0")
    return np.maximum(squares / (squares.mean() or 1.0), _LEAST).astype(np.float32)

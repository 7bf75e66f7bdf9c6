"""The tolerance that calibrates itself: an executor may err as much as plain arithmetic that rounds alike, twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.testing.rounding import EPSILON

__all__ = ["Comparison", "compare", "nmse"]


@dataclass(frozen=True)
class Comparison:
    """error: max |out - ref|. limit: what is allowed. nmse: sum (out - ref)^2 / sum ref^2. problem: "" if it holds."""

    error: float
    limit: float
    nmse: float
    problem: str


def nmse(out: NDArray[Any], ref: NDArray[Any]) -> float:
    """Normalized mean squared error. [1, 2] against [1, 2.1]: 0.01 / 5.41 = 0.00185."""
    ref = ref.astype(np.float64)
    power = float(np.sum(ref * ref))
    error = float(np.sum((out.astype(np.float64) - ref) ** 2))
    return error / power if power else float(error > 0)


def compare(out: NDArray[Any], ref: NDArray[Any], naive: Sequence[NDArray[Any]], dtype: str) -> Comparison:
    """Judge `out` by `max|out - ref| <= 2 * max|naive - ref| + eps * max|ref|`, ref in float64.

    `naive` are runs of NaiveProgram in the executor's precision with different seeds; the worst one counts. `dtype`
    is the float type of that precision, which eps belongs to.
    Shape, NaN and infinity are looked at first: of `out`, and of the limit, which could not judge anything.
    """
    if out.shape != ref.shape:
        return Comparison(np.inf, 0.0, np.inf, f"shape {out.shape} instead of {ref.shape}")
    worst = float(np.max([_distance(run, ref) for run in naive]))  # NaN if any is, unlike the built-in max
    limit = 2 * worst + EPSILON[dtype] * float(np.max(np.abs(ref), initial=0))
    if not np.isfinite(out).all():
        return Comparison(np.inf, limit, np.inf, f"{np.count_nonzero(~np.isfinite(out))} values are not finite")
    if not np.isfinite(limit):
        return Comparison(np.inf, 0.0, np.inf, f"plain {dtype} arithmetic overflows here: choose a wider dtype")
    error = _distance(out, ref)
    problem = f"error {error:.3g} exceeds {limit:.3g}" if error > limit else ""
    return Comparison(error, limit, nmse(out, ref), problem)


def _distance(out: NDArray[Any], ref: NDArray[Any]) -> float:
    return float(np.max(np.abs(out.astype(np.float64) - ref), initial=0))

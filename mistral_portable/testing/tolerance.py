"""The tolerance that calibrates itself: twice the error of plain arithmetic that rounds where the executor rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.testing.rounding import EPSILON

__all__ = ["Comparison", "compare", "judge", "nmse", "row_errors"]


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

    `naive` are runs of NaiveProgram in the executor's precision with different noise; the worst one counts. `dtype`
    is the float type of that precision, whose epsilon is eps.
    Checked first: shape, NaN and infinity of `out`; and whether the limit is finite, as no other could judge anything.
    """
    return judge(out, ref, np.array([np.max(row_errors(run, ref), initial=0) for run in naive]), dtype)


def row_errors(out: NDArray[Any], ref: NDArray[Any]) -> NDArray[np.float64]:
    """The largest |out - ref| in each row: [T, ...] -> [T]. NaN if the row has one."""
    errors = np.abs(out.astype(np.float64) - ref)
    largest: NDArray[np.float64] = np.max(errors, axis=tuple(range(1, errors.ndim)), initial=0)
    return largest


def judge(out: NDArray[Any], ref: NDArray[Any], naive_errors: NDArray[np.float64], dtype: str) -> Comparison:
    """Judge like `compare`, by errors |naive - ref| of runs or rows, of which the largest counts."""
    if out.shape != ref.shape:
        return Comparison(np.inf, 0.0, np.inf, f"shape {out.shape} instead of {ref.shape}")
    worst = float(np.max(naive_errors, initial=0))  # NaN if any is, unlike the built-in max
    limit = 2 * worst + EPSILON[dtype] * float(np.max(np.abs(ref), initial=0))
    if not np.isfinite(out).all():
        return Comparison(np.inf, limit, np.inf, f"{np.count_nonzero(~np.isfinite(out))} values are not finite")
    if not np.isfinite(limit):
        return Comparison(np.inf, 0.0, np.inf, f"plain {dtype} arithmetic overflows here: choose a wider dtype")
    error = float(np.max(row_errors(out, ref), initial=0))
    problem = f"error {error:.3g} exceeds {limit:.3g}" if error > limit else ""
    return Comparison(error, limit, nmse(out, ref), problem)

"""The rules that reshape one row of logits before a token is drawn.

A row is float32 [vocab] with at least one finite entry and no NaN; -inf marks a token that cannot be drawn.
`order.py` says in which order the rules apply. The first three change a row in place, `temperature` returns another.

The others choose: they take the finite logits [n] and return the positions of those that stay, int64 in rising order,
or None if all do: what follows then computes with few numbers.
"""

from math import exp, log, sqrt

import numpy as np
from numpy.typing import NDArray

from mistral_portable.sampling.scratch import scratch

__all__ = [
    "Positions",
    "Row",
    "epsilon_cutoff",
    "eta_cutoff",
    "finite",
    "frequency_presence_penalty",
    "highest",
    "log_softmax",
    "logit_bias",
    "min_p",
    "repetition_penalty",
    "softmax",
    "temperature",
    "temperature_top_k",
    "top_k",
    "top_n_sigma",
    "top_p",
    "typical_p",
    "xtc",
]

Row = NDArray[np.float32]
Positions = NDArray[np.int64]

_BLOCK = 256  # the most entries whose maximum stands for them
_SHORT = 4096  # entries: fewer are sorted at once
_NUCLEUS = (1e-2, 1e-4)  # of the highest probability: `top_p` looks at the tokens above these first


def logit_bias(row: Row, tokens: Positions, biases: Row) -> None:
    """Add `biases` [n] to the logits of the distinct ids `tokens` [n]; -inf bans.

    >>> row = np.float32([1, 2, 3])
    >>> logit_bias(row, np.array([2, 0]), np.float32([-np.inf, 0.5])); row
    array([ 1.5,  2. , -inf], dtype=float32)
    """
    row[tokens] += biases


def repetition_penalty(row: Row, seen: Positions, penalty: float) -> None:
    """Divide the positive and multiply the negative logits of the distinct ids `seen` [n] (prompt and output).

    CTRL (arXiv:1909.05858, section 4.1) as corrected for negative logits by transformers.

    >>> row = np.float32([4, -4, 4])
    >>> repetition_penalty(row, np.array([0, 1]), 2.0); row
    array([ 2., -8.,  4.], dtype=float32)
    """
    logits = row[seen]
    row[seen] = np.where(logits < 0, logits * penalty, logits / penalty)


def frequency_presence_penalty(
    row: Row, tokens: Positions, counts: NDArray[np.int64], frequency: float, presence: float
) -> None:
    """Subtract `counts * frequency + presence` from the logits of the distinct ids `tokens` [n], generated so often.

    The rule of the OpenAI API, and of vLLM's `apply_penalties`: the prompt does not count.

    >>> row = np.float32([1, 1, 1])
    >>> frequency_presence_penalty(row, np.array([1, 2]), np.array([1, 3]), 0.5, 0.25); row
    array([ 1.  ,  0.25, -0.75], dtype=float32)
    """
    row[tokens] -= (counts * frequency + presence).astype(np.float32)


def temperature(row: Row, value: float, out: Row | None = None) -> Row:
    """Return `(row - max) / value`, for value > 0: softmax does not see the shift, and no small value overflows.

    out: where the result goes, if given; may be the row itself.

    >>> temperature(np.float32([1, 3, 2]), 0.5)
    array([-4.,  0., -2.], dtype=float32)
    """
    out = np.empty(row.size, np.float32) if out is None else out
    scaled = scratch(row.size, np.float64)
    np.copyto(scaled, row)
    scaled -= row.max()
    with np.errstate(over="ignore"):  # far below the maximum, -inf is the right answer
        scaled /= value
        np.copyto(out, scaled, casting="same_kind")
    return out


def top_k(logits: Row, k: int) -> Positions | None:
    """Keep the k highest logits, and all that tie with the k-th.

    >>> top_k(np.float32([1, 3, 2, 2]), 2)
    array([1, 2, 3])
    """
    return None if k >= logits.size else highest(logits, k)


def temperature_top_k(row: Row, value: float, k: int, out: Row | None = None) -> tuple[Positions | None, Row]:
    """Apply `temperature` if value is not 1, then `top_k` if k is not 0; return the ids left (None: all), their logits.

    Looks at the 2k highest first: division and rounding keep the order, so if one of them goes, so do all lower ones.
    out: as for `temperature`; the logits returned may lie there.

    >>> temperature_top_k(np.float32([1, 3, 2, 2]), 0.5, 2)
    (array([1, 2, 3]), array([ 0., -2., -2.], dtype=float32))
    """
    if value != 1 and 0 < 64 * k <= row.size:
        near = highest(row, 2 * k)
        scaled = temperature(row[near], value)
        kept = highest(scaled, k)
        if kept.size < near.size:
            return near[kept], scaled[kept]
    scaled = row if value == 1 else temperature(row, value, out)
    left = top_k(scaled, k) if k else None
    return left, scaled if left is None else scaled[left]


def top_p(logits: Row, p: float) -> Positions | None:
    """Keep the smallest set of most likely tokens whose probabilities reach p; lower ids win ties.

    Nucleus sampling (arXiv:1904.09751): the token that crosses p is kept, so a token goes only if those
    before it already hold p, as in transformers' TopPLogitsWarper and mistral-inference's `sample_top_p`.

    >>> top_p(np.log(np.float32([0.2, 0.5, 0.2, 0.1])), 0.6)    # 0.5 < 0.6, so one 0.2 is kept
    array([0, 1])
    """
    weights = _weights(logits, scratch(logits.size, np.float64))
    total = weights.sum()
    # Tokens below (1 - p) / n hold less than 1 - p together: p is reached without them. Sorting is what takes time, so
    # the few likeliest are tried first (the highest weight is 1); their sums are those of the longer list.
    bound = (1 - p) / logits.size
    for least in (*(share for share in _NUCLEUS if share / total > bound), None):
        likely = (weights / total >= bound if least is None else weights >= least).nonzero()[0]
        likely = likely[(-logits[likely]).argsort()]
        sums = (weights[likely] / total).cumsum()
        if sums[-1] >= p:
            break
    size = int(sums.searchsorted(p)) + 1
    last = logits[likely[:size][-1]]
    kept: Positions = (logits >= last).nonzero()[0]
    if kept.size <= size:
        return kept
    tied = (logits[kept] == last).nonzero()[0]
    return np.delete(kept, tied[size - kept.size :])


def min_p(logits: Row, p: float) -> Positions | None:
    """Keep the tokens at least p times as likely as the most likely one (arXiv:2407.01082), for p > 0.

    >>> min_p(np.log(np.float32([0.1, 0.6, 0.3])), 0.4)    # 0.4 * 0.6 = 0.24
    array([1, 2])
    """
    return np.flatnonzero(logits >= np.float64(logits.max()) + log(p))


def typical_p(logits: Row, p: float) -> Positions | None:
    """Keep the tokens whose surprise `-log q` is nearest to the entropy H, until their mass reaches p.

    Locally typical sampling (arXiv:2202.00666). Tokens as near as the last one are all kept.

    >>> typical_p(np.log(np.float32([0.6, 0.3, 0.1])), 0.2)    # H = 0.90; surprises 0.51, 1.20, 2.30
    array([1])
    """
    surprise = -log_softmax(logits)
    probabilities = np.exp(-surprise)
    distance = np.abs(surprise - np.sum(probabilities * surprise))
    nearest = np.argsort(distance)
    cumulative = np.cumsum(probabilities[nearest])
    last = nearest[np.searchsorted(cumulative, p * cumulative[-1])]
    return np.flatnonzero(distance <= distance[last])


def epsilon_cutoff(logits: Row, epsilon: float) -> Positions:
    """Keep the tokens of at least this probability, and the most likely ones.

    Epsilon sampling (arXiv:2210.15191).

    >>> epsilon_cutoff(np.log(np.float32([0.1, 0.6, 0.3])), 0.2)
    array([1, 2])
    """
    return np.flatnonzero((softmax(logits) >= epsilon) | (logits == logits.max()))


def eta_cutoff(logits: Row, epsilon: float) -> Positions:
    """Keep the tokens of at least the probability `min(epsilon, sqrt(epsilon) * exp(-H))`, and the most likely ones.

    Eta sampling (arXiv:2210.15191): the more even the probabilities, that is the higher their entropy H, the lower.

    >>> eta_cutoff(np.log(np.float32([0.1, 0.6, 0.3])), 0.2)    # H = 0.90: 0.18
    array([1, 2])
    """
    surprise = -log_softmax(logits)
    probabilities = np.exp(-surprise)
    least = min(epsilon, sqrt(epsilon) * exp(-float(np.sum(probabilities * surprise))))
    return np.flatnonzero((probabilities >= least) | (logits == logits.max()))


def top_n_sigma(logits: Row, n: float) -> Positions | None:
    """Keep the logits at most n standard deviations below the highest one, for n > 0 (arXiv:2411.07641).

    >>> top_n_sigma(np.float32([1, 5, 2, 4]), 1.0)    # a standard deviation of 1.58
    array([1, 3])
    """
    wide = logits.astype(np.float64)
    return np.flatnonzero(wide >= wide.max() - n * wide.std())


def xtc(logits: Row, threshold: float) -> Positions | None:
    """Exclude top choices: of the tokens with a probability of at least `threshold`, keep only the least likely one.

    Of several that are least likely the last one stays. All others are kept, and all are if fewer than two reach the
    threshold. Source: https://github.com/oobabooga/text-generation-webui/pull/6335.

    >>> xtc(np.log(np.float32([0.4, 0.3, 0.2, 0.1])), 0.19)
    array([2, 3])
    """
    top = np.flatnonzero(softmax(logits) >= threshold)
    if top.size < 2:
        return None
    last = top[top.size - 1 - logits[top][::-1].argmin()]
    return np.delete(np.arange(logits.size), top[top != last])


def finite(row: Row) -> Positions | None:
    """Find the tokens that can be drawn: their ids in rising order, None if all can.

    >>> finite(np.float32([1, -np.inf, 2]))
    array([0, 2])
    """
    return None if row.min() > -np.inf else np.flatnonzero(row > -np.inf)


def highest(row: Row, k: int) -> Positions:
    """Find the k highest entries of a row, 1 <= k <= vocab, and all that tie with the k-th: positions in rising order.

    The k-th highest of the blocks' maxima is no higher than the k-th entry, so only entries from there on are sorted.

    >>> highest(np.float32([1, 3, 2, 2]), 2)
    array([1, 2, 3])
    """
    height = min(_BLOCK, row.size // (4 * k))
    if row.size < _SHORT or height < 8:
        return np.flatnonzero(row >= np.partition(row, -k)[-k])
    blocks = row.size // height
    maxima = row[: height * blocks].reshape(height, blocks).max(axis=0)  # a block is a column
    near: Positions = (row >= np.partition(maxima, -k)[-k]).nonzero()[0]
    entries = row[near]
    return near[np.flatnonzero(entries >= np.partition(entries, -k)[-k])]


def softmax(logits: Row, out: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Probabilities in float64 [n] of float32 logits [n] with a finite maximum; in `out` [n] if given."""
    weights = _weights(logits, np.empty(logits.size) if out is None else out)
    weights /= weights.sum()
    return weights


def log_softmax(logits: Row, tokens: Positions | None = None) -> NDArray[np.float64]:
    """Natural logarithm of `softmax(logits)`, of all or of `tokens` only, finite where a probability would underflow.

    >>> log_softmax(np.log(np.float32([0.1, 0.6, 0.3])), np.array([2, 0])).round(3)
    array([-1.204, -2.303])
    """
    total = _weights(logits, scratch(logits.size, np.float64)).sum()
    shifted = (logits if tokens is None else logits[tokens]).astype(np.float64)
    shifted -= logits.max()
    shifted -= np.log(total)
    return shifted


def _weights(logits: Row, out: NDArray[np.float64]) -> NDArray[np.float64]:
    """Write `exp(logits - max)` into out [n] and return it: the softmax before it is divided by its sum."""
    np.copyto(out, logits)
    if shift := logits.max():  # 0 after `temperature`
        out -= shift
    return np.exp(out, out=out)

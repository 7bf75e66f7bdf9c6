"""The rules that reshape one row of logits before a token is drawn, each a pure function.

A row is float32 [vocab] with at least one finite entry and no NaN; -inf marks a token that cannot be drawn.
`Sampler` applies the rules in the order of this file, which is the order of transformers' `generate`
(`_get_logits_processor`; the two penalties that it lacks follow its own penalty, as in vLLM):

    logit_bias, repetition_penalty, frequency_presence_penalty      also when greedy
    temperature, top_k, top_p, min_p, typical_p                     only when drawing
"""

from math import log

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Row",
    "finite",
    "frequency_presence_penalty",
    "kth_highest",
    "log_softmax",
    "logit_bias",
    "min_p",
    "repetition_penalty",
    "softmax",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
]

Row = NDArray[np.float32]

_BANNED = np.float32(-np.inf)
_BLOCK = 256  # entries whose maximum stands for them
_NUCLEUS = (1e-2, 1e-4)  # of the highest probability: `top_p` looks at the tokens above these first


def logit_bias(row: Row, tokens: NDArray[np.int64], biases: Row) -> Row:
    """Add `biases` [n] to the logits of the distinct ids `tokens` [n]; -inf bans.

    >>> logit_bias(np.float32([1, 2, 3]), np.array([2, 0]), np.float32([-np.inf, 0.5]))
    array([ 1.5,  2. , -inf], dtype=float32)
    """
    out = row.copy()
    out[tokens] += biases
    return out


def repetition_penalty(row: Row, seen: NDArray[np.bool_], penalty: float) -> Row:
    """Divide the positive and multiply the negative logits of tokens in `seen` [vocab] (prompt and output).

    CTRL (arXiv:1909.05858, section 4.1) as corrected for negative logits by transformers.

    >>> repetition_penalty(np.float32([4, -4, 4]), np.array([True, True, False]), 2.0)
    array([ 2., -8.,  4.], dtype=float32)
    """
    out = row.copy()
    logits = row[seen]
    out[seen] = np.where(logits < 0, logits * penalty, logits / penalty)
    return out


def frequency_presence_penalty(row: Row, counts: NDArray[np.int64], frequency: float, presence: float) -> Row:
    """Subtract `counts * frequency + (counts > 0) * presence`; `counts` [vocab] counts generated tokens only.

    The rule of the OpenAI API, and of vLLM's `apply_penalties`.

    >>> frequency_presence_penalty(np.float32([1, 1, 1]), np.array([0, 1, 3]), 0.5, 0.25)
    array([ 1.  ,  0.25, -0.75], dtype=float32)
    """
    out = row.copy()
    used = np.flatnonzero(counts)
    out[used] -= (counts[used] * frequency + presence).astype(np.float32)
    return out


def temperature(row: Row, value: float) -> Row:
    """`(row - max) / value`, for value > 0: softmax does not see the shift, and no small value overflows.

    >>> temperature(np.float32([1, 3, 2]), 0.5)
    array([-4.,  0., -2.], dtype=float32)
    """
    scaled = row.astype(np.float64)
    scaled -= row.max()
    with np.errstate(over="ignore"):  # far below the maximum, -inf is the right answer
        scaled /= value
        return scaled.astype(np.float32)


def top_k(row: Row, k: int) -> Row:
    """Keep the k highest logits, and all that tie with the k-th.

    >>> top_k(np.float32([1, 3, 2, 2]), 2)
    array([-inf,   3.,   2.,   2.], dtype=float32)
    """
    if k >= row.size:
        return row
    return np.where(row >= kth_highest(row, k), row, _BANNED)


def top_p(row: Row, p: float) -> Row:
    """Keep the smallest set of most likely tokens whose probabilities reach p; lower ids win ties.

    Nucleus sampling (arXiv:1904.09751): the token that crosses p is kept, so a token goes only if those
    before it already hold p, as in transformers' TopPLogitsWarper and mistral-inference's `sample_top_p`.

    >>> top_p(np.log(np.float32([0.2, 0.5, 0.2, 0.1])), 0.6)    # 0.5 < 0.6, so one 0.2 is kept
    array([-1.609438 , -0.6931472,       -inf,       -inf], dtype=float32)
    """
    tokens, logits = finite(row)
    probabilities = softmax(logits)
    # Tokens below (1 - p) / n hold less than 1 - p together: p is reached without them. Sorting is what takes time, so
    # the few likeliest are tried first; their sums are those of the longer list.
    bound, highest = (1 - p) / logits.size, probabilities.max()
    for least in (*(highest * share for share in _NUCLEUS if highest * share > bound), bound):
        likely = np.flatnonzero(probabilities >= least)
        likely = likely[np.argsort(-logits[likely])]
        sums = np.cumsum(probabilities[likely])
        if sums[-1] >= p:
            break
    size = np.searchsorted(sums, p) + 1
    last = logits[likely[:size][-1]]
    above = np.flatnonzero(logits > last)
    tied = np.flatnonzero(logits == last)[: size - above.size]
    kept = np.concatenate([above, tied])
    return _keep(row, kept if tokens is None else tokens[kept])


def min_p(row: Row, p: float) -> Row:
    """Keep the tokens at least p times as likely as the most likely one (arXiv:2407.01082), for p > 0.

    >>> min_p(np.log(np.float32([0.1, 0.6, 0.3])), 0.4)    # 0.4 * 0.6 = 0.24
    array([      -inf, -0.5108256, -1.2039728], dtype=float32)
    """
    return np.where(row >= np.float64(row.max()) + log(p), row, _BANNED)


def typical_p(row: Row, p: float) -> Row:
    """Keep the tokens whose surprise `-log q` is nearest to the entropy H, until their mass reaches p.

    Locally typical sampling (arXiv:2202.00666). Tokens as near as the last one are all kept.

    >>> typical_p(np.log(np.float32([0.6, 0.3, 0.1])), 0.2)    # H = 0.90; surprises 0.51, 1.20, 2.30
    array([      -inf, -1.2039728,       -inf], dtype=float32)
    """
    tokens = np.flatnonzero(row > _BANNED)
    surprise = -log_softmax(row[tokens])
    probabilities = np.exp(-surprise)
    distance = np.abs(surprise - np.sum(probabilities * surprise))
    nearest = np.argsort(distance)
    cumulative = np.cumsum(probabilities[nearest])
    last = nearest[np.searchsorted(cumulative, p * cumulative[-1])]
    return _keep(row, tokens[distance <= distance[last]])


def finite(row: Row) -> tuple[NDArray[np.int64] | None, Row]:
    """The ids of the tokens that can be drawn, in rising order, and their logits; None and the row itself if all can.

    >>> finite(np.float32([1, -np.inf, 2]))
    (array([0, 2]), array([1., 2.], dtype=float32))
    """
    if row.min() > _BANNED:
        return None, row  # arrays of a whole vocabulary take longer to allocate than to compute
    tokens = np.flatnonzero(row > _BANNED)
    return tokens, row[tokens]


def kth_highest(row: Row, k: int) -> np.float32:
    """The k-th highest entry of a row, 1 <= k <= vocab, counting ties one by one.

    The k-th highest of the blocks' maxima is no higher than it, so only entries from that bound on are looked at.

    >>> float(kth_highest(np.float32([1, 3, 2, 2]), 3))
    2.0
    """
    blocks = row.size // _BLOCK
    if k <= blocks // 2:
        maxima = row[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        row = row[row >= np.partition(maxima, -k)[-k]]
    highest: np.float32 = np.partition(row, -k)[-k]
    return highest


def softmax(logits: Row) -> NDArray[np.float64]:
    """Probabilities in float64 [n] of float32 logits [n] with a finite maximum."""
    weights = logits.astype(np.float64)
    weights -= logits.max()
    np.exp(weights, out=weights)
    weights /= weights.sum()
    return weights


def log_softmax(logits: Row) -> NDArray[np.float64]:
    """Natural logarithm of `softmax(logits)`, finite where a probability would underflow to 0."""
    shifted = logits.astype(np.float64)
    shifted -= logits.max()
    shifted -= np.log(np.exp(shifted).sum())
    return shifted


def _keep(row: Row, tokens: NDArray[np.int64]) -> Row:
    out = np.full_like(row, _BANNED)
    out[tokens] = row[tokens]
    return out

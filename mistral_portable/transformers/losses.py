"""Losses, float32, computed like transformers' `loss_utils.py`; without gradients."""

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError

__all__ = ["IGNORED", "causal_lm", "cross_entropy", "question_answering", "sequence_classification"]

IGNORED = -100

_PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")

Floats = NDArray[np.float32]
Labels = NDArray[np.integer]


def cross_entropy(logits: Floats, labels: Labels, ignored: int = IGNORED) -> np.float32:
    """The mean over the labels that are not `ignored` of -log softmax(logits)[label]; NaN if all are.

    logits: [N, C]. labels: [N]. Example: logits [[0, 0]], label 1: log 2 = 0.693.
    Raises InputError for a label outside 0 .. C - 1.
    """
    kept = labels != ignored
    chosen, rows = labels[kept], logits[kept].astype(np.float64)
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < logits.shape[-1]:
        wrong = chosen[(chosen < 0) | (chosen >= logits.shape[-1])][0]
        raise InputError(f"label {wrong} is outside 0..{logits.shape[-1] - 1}; {ignored} marks what does not count")
    if not chosen.size:
        return np.float32(np.nan)
    rows -= rows.max(-1, keepdims=True)
    losses = np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(rows)), chosen]
    return np.float32(losses.mean())


def causal_lm(logits: Floats, labels: Labels) -> np.float32:
    """Cross entropy of next tokens: the logits at column t against label t + 1. logits: [B, T, V]. labels: [B, T].

    Raises InputError for a label outside 0 .. V - 1 other than IGNORED.
    """
    return cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))


def sequence_classification(logits: Floats, labels: NDArray[np.generic], problem_type: str) -> np.float32:
    """The loss of a classification of whole rows. logits: [B, num_labels].

    | problem_type | labels | loss |
    |---|---|---|
    | regression | like the logits; [B] if there is one label | mean squared error |
    | single_label_classification | integers [B] | cross entropy |
    | multi_label_classification | 0 or 1, like the logits | mean binary cross entropy |

    Raises InputError for another problem_type, and for labels of another shape or dtype.
    """
    if problem_type not in _PROBLEMS:
        raise InputError(f"problem_type={problem_type!r}: choose one of {', '.join(_PROBLEMS)}")
    if labels.dtype.kind not in "iubf":
        raise InputError(f"labels are {labels.dtype}: pass numbers")
    if problem_type == "single_label_classification" and (labels.dtype.kind == "f" or labels.size != len(logits)):
        raise InputError(f"labels are {labels.dtype} {list(labels.shape)}: pass {len(logits)} integers, one per row")
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels.reshape(-1).astype(np.int64))
    wanted = labels.astype(np.float64)
    found = logits.astype(np.float64)
    if problem_type == "regression" and logits.shape[-1] == 1:
        wanted, found = wanted.reshape(-1), found.reshape(-1)
    if wanted.shape != found.shape:
        raise InputError(f"labels have the shape {list(labels.shape)}, and {problem_type} needs {list(found.shape)}")
    if problem_type == "regression":
        return np.float32(np.square(found - wanted).mean())
    return np.float32((np.logaddexp(0, found) - wanted * found).mean())


def question_answering(start: Floats, end: Floats, starts: Labels, ends: Labels, kept: NDArray[np.bool_]) -> np.float32:
    """The mean of the cross entropies of an answer's first and last token.

    start, end: logits [B, T]. starts, ends: positions [B]; those from T on do not count, negative ones are taken as 0.
    kept: bool [B, T], False at padding, which is no candidate; labels at padding do not count.
    """
    length, rows = start.shape[1], np.arange(len(start))
    found = []
    for logits, positions in ((start, starts), (end, ends)):
        wanted = np.clip(positions.reshape(-1).astype(np.int64), 0, length)
        inside = np.minimum(wanted, length - 1)
        wanted = np.where(kept[rows, inside], wanted, length)
        found.append(cross_entropy(np.where(kept, logits, np.float32(-np.inf)), wanted, length))
    return np.float32((found[0] + found[1]) / 2)

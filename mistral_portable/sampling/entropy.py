"""Rules that depend on how uncertain the model is: dynamic temperature and mirostat 2. Sources: llama.cpp's
`llama_sampler_temp_ext` and `llama_sampler_mirostat_v2`."""

import math

import numpy as np

from mistral_portable.sampling.processors import Positions, Row, log_softmax

__all__ = ["dynamic_temperature", "mirostat", "next_mu"]

_LEAST = 1e-300  # as temperature: the highest logit alone is left


def dynamic_temperature(logits: Row, value: float, spread: float, exponent: float) -> float:
    """Return a temperature from `value - spread`, 0 at least, to `value + spread` for logits [n], all finite.

    It rises with the entropy, of which `log n` is the most: `low + (high - low) * (entropy / log n) ** exponent`.

    >>> dynamic_temperature(np.zeros(4, np.float32), 1.0, 0.5, 1.0)    # all are equally likely
    1.5
    """
    if logits.size == 1:
        return value
    logs = log_softmax(logits)
    entropy = max(0.0, -float(np.sum(np.exp(logs) * logs)))
    low, high = max(0.0, value - spread), value + spread
    share = min(1.0, entropy / math.log(logits.size))
    return max(_LEAST, low + (high - low) * math.pow(share, exponent))


def mirostat(logits: Row, mu: float) -> Positions | None:
    """Keep the tokens whose surprise, `-log2 p`, is mu at most, or else the most likely one (arXiv:2007.14966).

    >>> mirostat(np.log(np.float32([0.5, 0.125, 0.375])), 2)    # surprises 1, 3, 1.4
    array([0, 2])
    """
    kept = np.flatnonzero(log_softmax(logits) >= -mu * math.log(2))
    return kept if kept.size else np.array([logits.argmax()])


def next_mu(mu: float, probability: float, tau: float, eta: float) -> float:
    """Return mu behind a token that had this probability among those that were kept.

    >>> next_mu(10.0, 0.25, 5.0, 0.1)    # a surprise of 2, where 5 was wanted
    10.3
    """
    return mu - eta * (-math.log2(probability) - tau)

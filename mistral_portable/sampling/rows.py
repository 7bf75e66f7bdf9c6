"""sample_rows: the next tokens of many sequences, whose rows are shared out among threads."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError
from mistral_portable.sampling.params import SamplingParams
from mistral_portable.sampling.pool import Pool, usable_cpus
from mistral_portable.sampling.sampler import Sampled, Sampler

__all__ = ["sample_rows"]

_MOST_THREADS = 8  # what Python does between NumPy's calls is done by one thread at a time
_LONG = 1 << 16  # entries of a row: below, NumPy's calls, which run side by side, take too little of the time

_pool = Pool(_MOST_THREADS - 1)


def sample_rows(
    samplers: Sequence[Sampler], logits: NDArray[np.float32], *, threads: int | None = None
) -> list[Sampled | Exception]:
    """Choose a token from each row of float32 logits [R, vocab]: row r is for samplers[r], all of them distinct.

    Equals `samplers[r].sample(logits[r])` one after the other, for any number of threads. What `sample` would raise
    for a row is that row's result; the others do not notice:

    >>> from mistral_portable.sampling import SamplingParams
    >>> greedy = [Sampler(SamplingParams(temperature=0)) for _ in range(3)]
    >>> sampled, error, also = sample_rows(greedy, np.float32([[1, 3, 2], [1, np.nan, 2], [5, 3, 2]]))
    >>> sampled.token, type(error).__name__, also.token
    (1, 'NumericsError', 0)

    threads: the most that take part; None: one for each CPU that the process may use, up to 8, where that saves time.
    Raises InputError for logits that are not float32 [R, vocab], and for a sampler that has two rows.
    """
    if logits.ndim != 2 or logits.dtype != np.float32 or len(logits) != len(samplers):
        raise InputError(
            f"logits are {logits.dtype} {list(logits.shape)}: pass float32 [{len(samplers)}, vocab], a row a sampler"
        )
    if len(set(map(id, samplers))) < len(samplers):
        raise InputError("a sampler has two rows: pass one row of each sequence")
    results: list[Sampled | Exception | None] = [None] * len(samplers)

    def sample(row: int) -> None:
        try:
            results[row] = samplers[row].sample(logits[row])
        except Exception as error:  # a caller's own rule may raise anything
            results[row] = error

    if len(samplers) == 1:  # a single caller's step may take as little as 0.1 ms
        sample(0)
        return [result for result in results if result is not None]
    if threads is None:
        threads = _useful_threads(samplers, logits.shape[1])
    _pool.run(sample, len(samplers), threads=threads)
    return [result for result in results if result is not None]


def _useful_threads(samplers: Sequence[Sampler], vocab_size: int) -> int:
    """Return more than one only if NumPy's calls take most of the time: one thread at a time runs Python.

    On two CPUs, 16 rows of 131072 with temperature took 6.3 ms on one thread and 4.2 ms on two; of 32768, 1.9 and 2.1.
    """
    exponentials = sum(_needs_all_exponentials(sampler.params) for sampler in samplers)
    return min(usable_cpus(), _MOST_THREADS) if vocab_size >= _LONG and exponentials > 1 else 1


def _needs_all_exponentials(params: SamplingParams) -> bool:
    """Tell whether a row takes some 20 passes over the vocabulary, not 3: after a top_k, few tokens are left."""
    return params.logprobs is not None or (params.temperature != 0 and params.top_k == 0)

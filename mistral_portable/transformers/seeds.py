"""set_seed: makes what is drawn without a seed of its own the same in each run."""

import threading

import numpy as np

from mistral_portable.errors import InputError

__all__ = ["fresh_seed", "set_seed"]

_LARGEST = 2**32 - 1  # as in transformers, where NumPy's global generator takes no more
_SEEDS: list[np.random.Generator] = []
"""The generator that `set_seed` has made; none before."""
_LOCK = threading.Lock()


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Set the seed of all that this package draws from here on where a call names none: tokens, and random weights.

    deterministic: has no effect; everything is. The generators of Python, NumPy and torch are not changed.

    Raises InputError for anything but an integer from 0 to 2^32 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= _LARGEST:
        raise InputError(f"seed={seed!r:.40} must be an integer from 0 to {_LARGEST}")
    with _LOCK:
        _SEEDS[:] = [np.random.default_rng(int(seed))]


def fresh_seed() -> int | None:
    """The seed of the next draw: another one in each call after `set_seed`; None before it."""
    with _LOCK:
        return int(_SEEDS[0].integers(2**62)) if _SEEDS else None

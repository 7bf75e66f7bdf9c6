"""The one definition of the sliding window."""

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from mistral_portable.config import Window

__all__ = ["first_visible", "visible"]


@overload
def visible(query: int, key: int, window: Window) -> bool: ...
@overload
def visible(query: NDArray[np.integer[Any]], key: NDArray[np.integer[Any]], window: Window) -> NDArray[np.bool_]: ...
def visible(query: Any, key: Any, window: Window) -> Any:
    """Whether the query at position `query` sees the key at position `key`: `0 <= query - key < window`.

    Exactly `window` keys, itself included; None is plain causal. Source: mistral-inference `cache.py`,
    transformers >= 5 (`k <= q and k > q - W`). With window 3, query 5 sees the keys 3, 4, 5. Arrays broadcast.
    """
    distance = query - key
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def first_visible(query: int, window: Window) -> int:
    """The oldest position that `query` sees: `max(0, query - window + 1)`. With window 3, 5 -> 3 and 1 -> 0."""
    return 0 if window is None else max(0, query - window + 1)

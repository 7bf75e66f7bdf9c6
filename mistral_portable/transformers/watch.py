"""Watch: looks at answers while they are made, for a streamer and for criteria that end rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError
from mistral_portable.transformers.arrays import Library
from mistral_portable.transformers.stopping import Criterion

__all__ = ["Watch", "checked_streamer"]


class Watch:
    """Takes the columns of answers one after another (`generation.Column`)."""

    def __init__(self, ids: NDArray[np.int64], library: Library, streamer: Any, criteria: Sequence[Criterion]) -> None:
        """ids: the padded prompts [B, T]. library: of the caller, for the arrays that the streamer is given."""
        self._ids, self._library, self._streamer, self._criteria = ids, library, streamer, criteria
        if streamer is not None:
            streamer.put(library.make(ids))

    def __call__(self, tokens: NDArray[np.int64], scores: Sequence[Any] | None) -> NDArray[np.bool_]:
        """Show the next token of each row [B]; return which rows end there. scores: of all steps so far, or None."""
        if self._streamer is not None:
            self._streamer.put(self._library.make(tokens))
        self._ids = np.concatenate([self._ids, tokens[:, None]], axis=1)
        return self.ended(self._ids, scores)

    def ended(self, ids: NDArray[np.int64], scores: Sequence[Any] | None) -> NDArray[np.bool_]:
        """Tell which of these texts [N, T] end with their last token."""
        made = None if scores is None else tuple(map(self._library.make, scores))
        ends = np.zeros(len(ids), np.bool_)
        for criterion in self._criteria:
            ends = ends | criterion(ids, made)
        return ends

    def end(self) -> None:
        """Tell the streamer that nothing more comes."""
        if self._streamer is not None:
            self._streamer.end()


def checked_streamer(streamer: Any) -> Any:
    """The streamer. Raises InputError if it has no methods `put` and `end`."""
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise InputError(f"streamer is a {type(streamer).__name__}: pass an object with the methods put and end")
    return streamer

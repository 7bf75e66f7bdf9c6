"""Numbering: index and id of each call of an answer."""

from array import array
from collections.abc import Sequence

from mistral_portable.tokenizer import is_call_id, make_call_id

__all__ = ["Numbering"]


class Numbering:
    """Gives the calls of one answer their indices and ids.

    An id that the model wrote is kept if it has 9 letters and digits and no earlier call has it. Others are made of the
    prompt and the index: the same answer has the same ids again, and the turns of a conversation have different ones.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        """prompt: the ids behind which the answer stands."""
        self.count = 0
        """Calls so far: the next one's index."""
        self._prompt = prompt
        self._taken = set[str]()

    def next(self, written: object = None) -> tuple[int, str]:
        """The index and the id of the next call. written: the id that the model has given it, if any."""
        if isinstance(written, str) and is_call_id(written) and written not in self._taken:
            id = written
        else:
            id = make_call_id(array("q", [*self._prompt, self.count]).tobytes(), self._taken)
        self._taken.add(id)
        self.count += 1
        return self.count - 1, id

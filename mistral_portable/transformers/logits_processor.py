"""LogitsProcessor and LogitsProcessorList: rules of the caller's own for the next token of each row of a batch."""

import inspect
from typing import Any

from mistral_portable.errors import InputError

__all__ = ["LogitsProcessor", "LogitsProcessorList"]


class LogitsProcessor:
    """Base of rules. `generate` takes any function of these two arguments."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return scores in place of these: [B, vocab], of the caller's array library.

        input_ids: prompts and answers so far, [B, T], padding included.
        """
        raise NotImplementedError


class LogitsProcessorList(list[Any]):
    """Rules that apply in turn."""

    def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
        """Return what the rules make of scores [B, vocab]. more: arguments of rules that have more than two.

        Raises InputError if one of these is not given.
        """
        for rule in self:
            named = list(inspect.signature(rule.__call__).parameters)[2:]
            if missing := [name for name in named if name not in more]:
                raise InputError(f"{type(rule).__name__} needs {missing[0]}: pass it")
            scores = rule(input_ids, scores, **({name: more[name] for name in named}))
        return scores

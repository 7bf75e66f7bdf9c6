"""Continues the rows of a padded batch in the engine's loop; each row gets the tokens that it would get alone."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.engine.loop import Loop
from mistral_portable.engine.request import Completion
from mistral_portable.errors import InputError
from mistral_portable.sampling import SamplingParams
from mistral_portable.transformers.batch import Batch
from mistral_portable.transformers.decoder import Decoder
from mistral_portable.transformers.logits_rules import Rule

__all__ = ["Column", "continue_rows", "inferred_mask", "of_row", "require_room", "rows_of"]

Column = Callable[[NDArray[np.int64], Any], NDArray[np.bool_]]
"""Takes the next token of each row [B], of rows that have ended the padding token, and the scores of all steps so far
or None; says which rows end here [B]."""


def inferred_mask(ids: NDArray[np.int64], pad: int | None, ends: Sequence[int]) -> NDArray[np.int64] | None:
    """The mask of ids [B, T] that come without one: 0 at the padding token; None if there is no sure padding.

    A padding token that also ends texts may be meant. Source: transformers' `_prepare_attention_mask_for_generation`.
    """
    return None if pad is None or pad in ends else (ids != pad).astype(np.int64)


def require_room(batch: Batch, past: Sequence[int], most: int, context: int) -> None:
    """Raise InputError for a row without tokens, and for answers beyond max_position_embeddings.

    past: for each row its tokens in a cache. most: tokens of an answer. context: max_position_embeddings.
    """
    if empty := [row for row, tokens in enumerate(batch.tokens) if not tokens]:
        raise InputError(f"row {empty[0]} of input_ids is all padding: give it at least one token")
    longest = max(len(tokens) + before for tokens, before in zip(batch.tokens, past, strict=True))
    if longest + most > context + 1:  # the last token is returned without being read
        raise InputError(f"{longest} + {most} tokens exceed max_position_embeddings={context}: set max_new_tokens")


def of_row(params: SamplingParams, row: int, rules: Sequence[Rule] = ()) -> SamplingParams:
    """The parameters of one row: with a seed, row r has seed + r."""
    seed = None if params.seed is None else params.seed + row
    return replace(params, seed=seed, logits_processors=tuple(rules))


def continue_rows(
    decoder: Decoder,
    loop: Loop,
    batch: Batch,
    params: SamplingParams,
    rules: Sequence[Sequence[Rule]],
    ends: Sequence[int],
    pad: int,
    *,
    drafts: int = 0,
    column: Column | None = None,
) -> NDArray[np.int64]:
    """Generate up to `params.max_tokens` tokens for each row: int64 [B, tokens of the longest answer].

    loop: of the decoder. rules: of each row. ends: ids that end a row, which is then filled with `pad`. drafts: the
    most tokens that a step may try. column: is given the answers column by column, as soon as all rows are that far.

    Each row has its own sampler. Raises NumericsError for logits that are NaN or infinite, the errors of `Core.step`,
    and what `column` raises.
    """
    completions = [
        Completion(
            tokens,
            of_row(params, row, rules[row]),
            ends=ends,
            max_context=decoder.config.max_position_embeddings,
            embeds=None if batch.embeds is None else batch.embeds[row, columns],
            drafts=drafts,
        )
        for row, (tokens, columns) in enumerate(zip(batch.tokens, batch.columns, strict=True))
    ]
    number = {completion: row for row, completion in enumerate(completions)}
    answers = [list[int]() for _ in completions]
    shown = _Columns(answers, ends, params.max_tokens or 0, pad, column)
    with closing(loop.run(completions)) as made:
        for completion in made:
            row, token = number[completion], completion.next().token
            if not shown.ended[row]:
                answers[row].append(token)
            if column is not None:
                for ended in shown.advance():
                    loop.leave(completions[ended])
    return rows_of(answers, pad)


def rows_of(answers: Sequence[Sequence[int]], pad: int) -> NDArray[np.int64]:
    """Answers side by side, filled up on the right: int64 [B, tokens of the longest one].

    >>> rows_of([[7], [8, 9]], 0)
    array([[7, 0],
           [8, 9]])
    """
    width = max(map(len, answers))
    return np.array([[*answer, *[pad] * (width - len(answer))] for answer in answers], np.int64)


class _Columns:
    """Shows the answers column by column, and ends rows where the one who looks at them says so."""

    def __init__(
        self, answers: list[list[int]], ends: Sequence[int], most: int, pad: int, column: Column | None
    ) -> None:
        self._answers, self._ends, self._most, self._pad, self._column = answers, ends, most, pad, column
        self._shown = 0
        self.ended = [False] * len(answers)
        """Rows that are cut off behind the columns shown."""

    def advance(self) -> list[int]:
        """Show the columns that all rows have reached; return the rows that end there and would go on."""
        cut = list[int]()
        while self._column is not None and not self._over() and all(map(self._reached, range(len(self._answers)))):
            going = [len(answer) > self._shown for answer in self._answers]
            tokens = [answer[self._shown] if len(answer) > self._shown else self._pad for answer in self._answers]
            said = self._column(np.array(tokens, np.int64), None)
            self._shown += 1
            for row in np.flatnonzero(said & np.array(going)):
                self.ended[row] = True
                cut.append(int(row))
                del self._answers[row][self._shown :]
        return cut

    def _over(self) -> bool:
        return all(self._has_ended(row) and len(answer) <= self._shown for row, answer in enumerate(self._answers))

    def _reached(self, row: int) -> bool:
        return len(self._answers[row]) > self._shown or self._has_ended(row)

    def _has_ended(self, row: int) -> bool:
        answer = self._answers[row]
        return self.ended[row] or len(answer) == self._most or (bool(answer) and answer[-1] in self._ends)

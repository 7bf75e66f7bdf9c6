"""generate(): continues the rows of a padded batch; each row gets the tokens that it would get alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError
from mistral_portable.sampling import Sampler, SamplingParams
from mistral_portable.transformers.batch import Batch
from mistral_portable.transformers.cache import Cache
from mistral_portable.transformers.decoder import Decoder

__all__ = ["continue_rows", "sampling_params"]

_INERT = {"num_beams": 1, "num_beam_groups": 1, "use_cache": True, "length_penalty": 1.0, "penalty_alpha": None}
"""Arguments of transformers' generate that are accepted with this value only, which has no effect."""


def sampling_params(
    do_sample: bool | None, max_new_tokens: int, seed: int | None, rules: dict[str, Any]
) -> SamplingParams:
    """Translate transformers' arguments to sampling parameters. rules: the other arguments, such as temperature.

    Without do_sample generation is greedy, whatever temperature says, as in transformers. top_k is 50 by default.
    Raises InputError, naming the argument, for one that is not supported, or of the wrong type or range.
    """
    if not isinstance(do_sample, bool | np.bool_ | None):
        raise InputError(f"do_sample is a {type(do_sample).__name__}: pass True or False")
    known = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
    for name, value in rules.items():
        inert = isinstance(value, int | float | None) and value in (None, _INERT.get(name))
        if name not in known and not inert:
            raise InputError(f"generate: {name}={value!r:.40} is not supported: leave it out")
    given = {name: rules[name] for name in known if rules.get(name) is not None}
    params = SamplingParams(max_tokens=max_new_tokens, seed=seed, **{"temperature": 1.0, "top_k": 50, **given})
    return params if do_sample else replace(params, temperature=0.0)


def continue_rows(
    decoder: Decoder, batch: Batch, params: SamplingParams, ends: Sequence[int], pad: int
) -> NDArray[np.int64]:
    """Generate up to `params.max_tokens` tokens for each row: int64 [B, tokens of the longest answer].

    ends: ids that end a row, which is then filled with `pad`. Each row has its own sampler; with a seed, row r has
    seed + r. More rows than lanes run in turns. Raises InputError for a row without tokens and for more tokens than
    max_position_embeddings, NumericsError for logits that are NaN or infinite, and the errors of `Decoder.run`.
    """
    rows, count = batch.shape[0], params.max_tokens or 0
    if empty := [row for row, tokens in enumerate(batch.tokens) if not tokens]:
        raise InputError(f"row {empty[0]} of input_ids is all padding: give it at least one token")
    longest = max(len(tokens) for tokens in batch.tokens)
    if longest + count > decoder.config.max_position_embeddings + 1:  # the last token is returned without being read
        raise InputError(
            f"{longest} + {count} tokens exceed max_position_embeddings={decoder.config.max_position_embeddings}: "
            "set max_new_tokens"
        )
    prompts = batch.tokens if batch.embeds is None else [()] * rows
    samplers = [Sampler(_of_row(params, row), prompt_tokens=prompts[row]) for row in range(rows)]
    parts = []
    for some in decoder.turns(range(rows)):
        with decoder.turn, decoder.temporary_cache(len(some)) as cache:
            own = [samplers[row] for row in some]
            parts.append(_continue_group(decoder, cache, batch.take(some), own, count, ends, pad))
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=pad) for part in parts])


def _continue_group(
    decoder: Decoder,
    cache: Cache,
    batch: Batch,
    samplers: Sequence[Sampler],
    count: int,
    ends: Sequence[int],
    pad: int,
) -> NDArray[np.int64]:
    """Generate at most `count` tokens for rows that have a lane each in the empty cache."""
    rows = batch.shape[0]
    out = np.full((rows, count), pad, np.int64)
    going = list(range(rows))
    lasts = [int(columns[-1]) for columns in batch.columns]
    requested = sorted(set(lasts))
    logits = decoder.run(batch, cache, frozenset(), requested)["logits"]
    logits = logits[np.arange(rows), [requested.index(last) for last in lasts]]
    for number in range(count):
        for row in going:
            out[row, number] = samplers[row].sample(logits[row]).token
        going = [row for row in going if out[row, number] not in ends]
        if not going:
            return out[:, : number + 1]
        if number + 1 < count:
            logits = decoder.run(_next(out[:, number], going), cache, frozenset(), [0])["logits"][:, 0]
    return out


def _next(tokens: NDArray[np.int64], going: Sequence[int]) -> Batch:
    """The next step's batch: one token for each unfinished row, padding for the others."""
    rows = range(len(tokens))
    none = np.zeros(0, np.intp)
    return Batch(
        (len(tokens), 1),
        [[int(tokens[row])] if row in going else [] for row in rows],
        [np.zeros(1, np.intp) if row in going else none for row in rows],
    )


def _of_row(params: SamplingParams, row: int) -> SamplingParams:
    return params if params.seed is None else replace(params, seed=params.seed + row)

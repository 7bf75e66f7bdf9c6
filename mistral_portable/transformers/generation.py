"""generate(): continues the rows of a padded batch; each row gets the tokens that it would get alone."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.engine.request import Completion
from mistral_portable.errors import InputError
from mistral_portable.sampling import SamplingParams, stated_rules
from mistral_portable.sampling.stated import RULES
from mistral_portable.transformers.batch import Batch
from mistral_portable.transformers.decoder import Decoder

__all__ = ["continue_rows", "inferred_mask", "sampling_params", "with_defaults"]

_INERT = {"num_beams": 1, "num_beam_groups": 1, "use_cache": True, "length_penalty": 1.0, "penalty_alpha": None}
"""Arguments of transformers' generate that are accepted with this value only, which has no effect."""

_DEFAULTED = (
    "do_sample",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "num_return_sequences",
    "pad_token_id",
)
"""Arguments, beside the rules of sampling, that a generation_config.json has defaults for."""


def sampling_params(
    do_sample: bool | None, max_new_tokens: int, seed: int | None, rules: dict[str, Any]
) -> SamplingParams:
    """Translate transformers' arguments to sampling parameters. rules: the other arguments, such as temperature.

    Without do_sample generation is greedy, whatever temperature says, as in transformers. top_k is 50 by default.
    Raises InputError, naming the argument, for one that is not supported, or of the wrong type or range.
    """
    if not isinstance(do_sample, bool | np.bool_ | None):
        raise InputError(f"do_sample is a {type(do_sample).__name__}: pass True or False")
    for name, value in rules.items():
        inert = isinstance(value, int | float | None) and value in (None, _INERT.get(name))
        if name not in RULES and not inert:
            raise InputError(f"generate: {name}={value!r:.40} is not supported: leave it out")
    given = {name: rules[name] for name in RULES if rules.get(name) is not None}
    params = SamplingParams(max_tokens=max_new_tokens, seed=seed, **{"temperature": 1.0, "top_k": 50, **given})
    return params if do_sample else replace(params, temperature=0.0)


def with_defaults(given: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `generate`, with the fields of a generation_config.json for those that are None or missing.

    Source: transformers' `_prepare_generation_config`. Raises InputError for a field that is not supported.
    """
    passed = {name: value for name, value in given.items() if value is not None}
    open_fields = {name: value for name, value in stated.items() if name not in passed}
    own = {name: open_fields[name] for name in _DEFAULTED if open_fields.get(name) is not None}
    return {**dict.fromkeys(_DEFAULTED), **given, **stated_rules(open_fields), **own, **passed}


def inferred_mask(ids: NDArray[Any], pad: int | None, ends: Sequence[int]) -> NDArray[np.int64] | None:
    """The mask of ids [B, T] that come without one: 0 at the padding token; None if there is no sure padding.

    A padding token that also ends texts may be meant. Source: transformers' `_prepare_attention_mask_for_generation`.
    """
    return None if pad is None or pad in ends else (ids != pad).astype(np.int64)


def continue_rows(
    decoder: Decoder, batch: Batch, params: SamplingParams, ends: Sequence[int], pad: int
) -> NDArray[np.int64]:
    """Generate up to `params.max_tokens` tokens for each row: int64 [B, tokens of the longest answer].

    ends: ids that end a row, which is then filled with `pad`. Each row has its own sampler; with a seed, row r has
    seed + r. Raises InputError for a row without tokens and for more tokens than max_position_embeddings,
    NumericsError for logits that are NaN or infinite, and the errors of `Core.step`.
    """
    count, context = params.max_tokens or 0, decoder.config.max_position_embeddings
    if empty := [row for row, tokens in enumerate(batch.tokens) if not tokens]:
        raise InputError(f"row {empty[0]} of input_ids is all padding: give it at least one token")
    longest = max(len(tokens) for tokens in batch.tokens)
    if longest + count > context + 1:  # the last token is returned without being read
        raise InputError(f"{longest} + {count} tokens exceed max_position_embeddings={context}: set max_new_tokens")
    completions = [
        Completion(
            tokens,
            _of_row(params, row),
            ends=ends,
            max_context=context,
            embeds=None if batch.embeds is None else batch.embeds[row, columns],
        )
        for row, (tokens, columns) in enumerate(zip(batch.tokens, batch.columns, strict=True))
    ]
    answers = {completion: list[int]() for completion in completions}
    with closing(decoder.loop.run(completions)) as made:
        for completion in made:
            answers[completion].append(completion.next().token)
    width = max(map(len, answers.values()))
    return np.array([answer + [pad] * (width - len(answer)) for answer in answers.values()], np.int64)


def _of_row(params: SamplingParams, row: int) -> SamplingParams:
    return params if params.seed is None else replace(params, seed=params.seed + row)

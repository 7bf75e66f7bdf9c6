"""Call: what `generate` is asked for, checked, and its parts made from the arguments."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError
from mistral_portable.sampling import SamplingParams
from mistral_portable.transformers.arrays import Library, as_numpy, checked_bool
from mistral_portable.transformers.batch import Batch
from mistral_portable.transformers.cache import Cache
from mistral_portable.transformers.checks import is_given, number, positive, shown
from mistral_portable.transformers.decoder import ATTENTIONS, HIDDEN_STATES, MOST_ROWS
from mistral_portable.transformers.generation_config import GenerationConfig, merged
from mistral_portable.transformers.logits_rules import Prompt
from mistral_portable.transformers.new_caches import DynamicCache
from mistral_portable.transformers.stepwise import Logits, Record, Rules
from mistral_portable.transformers.stopping import Criterion, called, stop_strings, time_limit
from mistral_portable.transformers.watch import Watch
from mistral_portable.transformers.without_effect import GENERATING, without_effect

__all__ = [
    "Call",
    "allowed_ids",
    "checked_config",
    "criteria_of",
    "custom_rules",
    "drawing",
    "most_new",
    "prompt_of",
]

_FILTERS = ("temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Fields of a GenerationConfig that SamplingParams has under the same names, where None is its default."""

_OUTPUTS = {"output_attentions": ATTENTIONS, "output_hidden_states": HIDDEN_STATES}
_FLAGS = ("output_scores", "output_logits", "remove_invalid_values", "renormalize_logits", *_OUTPUTS)
_DEFAULT_NEW = 20  # tokens where neither the call nor the model states a length


@dataclass(frozen=True)
class Call:
    """A call of `generate`, checked.

    ids: the padded prompts [P, T], without columns if they are embeddings. batch: what is to be read of them. prompts:
    what rules know of them. ends: ids that end a text. pad: fills rows. most: tokens of an answer. params: how tokens
    are drawn. rules: of each row. watch: looks at the answers; watches: whether anybody does. past: the caller's cache;
    new: one that is empty. library: the caller's.
    """

    config: GenerationConfig
    ids: NDArray[np.int64]
    batch: Batch
    prompts: Sequence[Prompt]
    ends: Sequence[int]
    pad: int
    most: int
    params: SamplingParams
    rules: Rules
    watch: Watch
    watches: bool
    past: Cache | None
    new: DynamicCache | None
    library: Library

    def take(self, rows: Sequence[int]) -> "Call":
        """The call for some of the prompts."""
        return replace(
            self,
            ids=self.ids[rows],
            batch=self.batch.take(rows),
            prompts=[self.prompts[row] for row in rows],
            rules=replace(self.rules, rows=[self.rules.rows[row] for row in rows]),
        )

    def record(self) -> Record:
        """A record of the steps, for what the call asks for."""
        config = self.config
        if not config.return_dict_in_generate:
            return Record()
        exposed = frozenset(output for name, output in _OUTPUTS.items() if getattr(config, name))
        return Record([] if config.output_scores else None, [] if config.output_logits else None, exposed)


def checked_config(
    options: Mapping[str, Any], given: GenerationConfig | None, model: GenerationConfig
) -> GenerationConfig:
    """The fields of a call, checked. Raises InputError for what is not supported or does not fit."""
    fields = vars(GenerationConfig())
    unknown = {name: value for name, value in options.items() if name not in fields}
    for name, value in without_effect(unknown, GENERATING, "generate").items():
        if value is not None:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"is {near[0]} meant?" if near else "leave it out"
            raise InputError(f"generate: {name}={shown(value)} is not supported: {hint}")
    config = merged({name: value for name, value in options.items() if name in fields}, given, model)
    without_effect(config.to_diff_dict(), GENERATING, "generate")
    kind = config.cache_implementation
    if not isinstance(kind, str | None) or kind == "quantized":
        raise InputError(f"cache_implementation={shown(kind)} is not supported: load(kv_cache=...) chooses a type")
    for name in ("do_sample", "return_dict_in_generate", "use_cache", *_FLAGS):
        value = getattr(config, name)
        setattr(config, name, name == "use_cache" if value is None else checked_bool(name, value))
    for name in ("num_beams", "num_return_sequences"):
        value = getattr(config, name)
        setattr(config, name, 1 if value is None else positive(name, value))
    if config.num_beams > MOST_ROWS // 2:
        raise InputError(f"num_beams={shown(config.num_beams)} must be from 1 to {MOST_ROWS // 2}")
    beams, returned = config.num_beams, config.num_return_sequences
    if returned > 1 and beams == 1 and not config.do_sample:
        raise InputError(f"num_return_sequences={returned} would all be the same: pass do_sample=True or num_beams")
    if returned > beams > 1:
        raise InputError(f"num_return_sequences={returned} is more than num_beams={beams}: raise num_beams")
    if config.early_stopping is None:
        config.update(early_stopping=False)
    if not isinstance(config.early_stopping, bool | str) or config.early_stopping not in (True, False, "never"):
        raise InputError(f"early_stopping={shown(config.early_stopping)}: pass True, False or 'never'")
    number("length_penalty", config.length_penalty)
    return config


def most_new(config: GenerationConfig, columns: int, context: int) -> int:
    """Tokens of an answer behind a prompt of so many columns. Raises InputError if none are left."""
    if config.max_new_tokens is not None:
        return positive("max_new_tokens", config.max_new_tokens)
    if config.max_length is None:
        return min(_DEFAULT_NEW, max(1, context - columns))
    most = positive("max_length", config.max_length) - columns
    if most < 1:
        raise InputError(f"max_length={config.max_length} leaves no room after the {columns} columns of the prompt")
    return most


def drawing(config: GenerationConfig, most: int, seed: int | None) -> SamplingParams:
    """How the tokens of the first row are drawn: without do_sample greedily, whatever temperature says."""
    filters = {name: value for name in _FILTERS if (value := getattr(config, name)) is not None}
    cutoffs = {name: filters.get(name) for name in ("epsilon_cutoff", "eta_cutoff")}
    filters |= {name: 0.0 for name, value in cutoffs.items() if type(value) in (int, float) and value == 1}  # off
    top_k = 0 if config.top_k is None else config.top_k
    params = SamplingParams(max_tokens=most, seed=seed, **{"temperature": 1.0, "top_k": top_k, **filters})
    return params if config.do_sample else replace(params, temperature=0.0)


def prompt_of(ids: NDArray[np.int64], mask: NDArray[Any] | None, row: int, copies: int) -> Prompt:
    """A row's prompt. ids: padded [T]. mask: of the batch [B, T], or [B, past + T]. copies: rows of each prompt."""
    kept = ids if mask is None else ids[mask[row, mask.shape[1] - len(ids) :] != 0]
    return Prompt(kept.tolist(), len(ids), ids.tolist(), row // copies)


def allowed_ids(function: Any, library: Library) -> Callable[[int, Sequence[int]], Any]:
    """The caller's `prefix_allowed_tokens_fn` as a function of ids in a list."""
    if not callable(function):
        raise InputError(f"prefix_allowed_tokens_fn={shown(function)}: pass a function of a row's number and ids")
    return lambda row, ids: function(row, library.make(np.array(ids, np.int64)))


def criteria_of(config: GenerationConfig, own: Any, tokenizer: Any, library: Library) -> list[Criterion]:
    """The criteria of a config, and the caller's own."""
    found = list[Criterion]()
    if config.max_time is not None:
        found.append(time_limit(config.max_time))
    if is_given(config.stop_strings):
        found.append(stop_strings(config.stop_strings, tokenizer))
    return found + ([] if own is None else called(own, library))


def custom_rules(rules: Any, library: Library) -> Callable[[NDArray[np.int64], Logits], Logits] | None:
    """The caller's rules as one function of NumPy arrays."""
    if rules is None or (isinstance(rules, list | tuple) and not rules):
        return None
    listed = rules if isinstance(rules, list | tuple) else [rules]
    whole = [rules] if callable(rules) else listed
    if not all(map(callable, whole)):
        raise InputError(f"logits_processor={shown(rules)}: pass functions of input_ids and scores")

    def apply(ids: NDArray[np.int64], scores: Logits) -> Logits:
        made: Any = library.make(scores)
        for rule in whole:
            made = rule(library.make(ids), made)
        found = as_numpy("logits_processor", made)
        if found.shape != scores.shape or found.dtype.kind != "f":
            raise InputError(f"logits_processor has returned {found.dtype} {list(found.shape)}: return the scores")
        return found.astype(np.float32)

    return apply

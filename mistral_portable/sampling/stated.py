"""Sampling as a generation_config.json states it, in transformers' names, as fields of SamplingParams."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mistral_portable.errors import InputError

__all__ = ["RULES", "stated_rules", "stated_sampling"]

RULES = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
"""Fields that have the same name and meaning in transformers and in SamplingParams."""

_NEUTRAL: Mapping[str, Any] = MappingProxyType(
    {
        "assistant_early_exit": None,
        "bad_words_ids": None,
        "begin_suppress_tokens": None,
        "constraints": None,
        "diversity_penalty": 0,
        "dola_layers": None,
        "encoder_no_repeat_ngram_size": 0,
        "encoder_repetition_penalty": 1,
        "exponential_decay_length_penalty": None,
        "force_words_ids": None,
        "forced_bos_token_id": None,
        "forced_decoder_ids": None,
        "forced_eos_token_id": None,
        "guidance_scale": 1,
        "min_length": 0,
        "min_new_tokens": 0,
        "no_repeat_ngram_size": 0,
        "num_beam_groups": 1,
        "num_beams": 1,
        "penalty_alpha": 0,
        "sequence_bias": None,
        "stop_strings": None,
        "suppress_tokens": None,
        "top_h": None,
        "watermarking_config": None,
    }
)
"""Fields that change a text in ways that are not supported, with the value that has no effect. Source: transformers'
GenerationConfig. All others change how a text is made (its cache, beams' early stopping), or are the user's own."""


_TRANSLATED: Mapping[str, str] = MappingProxyType(
    {
        "bad_words_ids": "bad_words_ids",
        "epsilon_cutoff": "epsilon_cutoff",
        "eta_cutoff": "eta_cutoff",
        "min_new_tokens": "min_tokens",
        "no_repeat_ngram_size": "no_repeat_ngram_size",
    }
)
"""Fields beside the RULES that SamplingParams has, too, by transformers' names."""


def stated_rules(stated: Mapping[str, Any]) -> dict[str, Any]:
    """The RULES among the fields of a generation_config.json.

    Raises InputError, in one line, for a field that would change the text and is not supported.
    """
    for name, neutral in _NEUTRAL.items():
        value = stated.get(name)
        if value not in (None, neutral, []):
            remedy = f"pass {name}={neutral}" if neutral is not None else "remove it there"
            raise InputError(f"generation_config.json: {name}={value!r:.40} is not supported: {remedy}")
    return {name: stated[name] for name in RULES if stated.get(name) is not None}


def stated_sampling(stated: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of SamplingParams that a generation_config.json states; those that it leaves open are not among them.

    `do_sample: false` is a temperature of 0. With `do_sample: true`, temperature and top_k are transformers' 1 and 50
    where they are open. Without `do_sample` a rule that is stated is meant: the text is drawn (transformers: greedy).
    `max_new_tokens` is max_tokens, `min_new_tokens` min_tokens. Lengths
    that count the prompt, too (`max_length`), are left to the caller.

    Raises InputError for a file that states nothing of all this, and for what is not supported.
    """
    rules = stated_rules({name: value for name, value in stated.items() if name not in _TRANSLATED})
    rules |= {own: stated[name] for name, own in _TRANSLATED.items() if stated.get(name)}
    draws, count = stated.get("do_sample"), stated.get("max_new_tokens")
    if draws is not None and not isinstance(draws, bool):
        raise InputError(f"generation_config.json: do_sample={draws!r:.40} is neither true nor false")
    if draws is None and count is None and not rules:
        raise InputError("sampling='model': no generation_config.json of the model says how to draw: leave it out")
    found = {"temperature": 1.0, "top_k": 50, **rules} if draws else rules
    if draws is False:
        found = {**rules, "temperature": 0.0}
    return found if count is None else {**found, "max_tokens": count}

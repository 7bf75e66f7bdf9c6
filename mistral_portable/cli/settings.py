"""/set: the sampling parameters of a chat, by name."""

import json
from dataclasses import fields, replace
from typing import Any

from mistral_portable.errors import InputError
from mistral_portable.sampling import SamplingParams
from mistral_portable.spelling import nearest

__all__ = ["changed", "shown"]

_NAMES = tuple(
    field.name
    for field in fields(SamplingParams)
    if field.name not in ("grammar", "logit_bias", "logits_processors", "logprobs", "stop_token_ids")
)


def changed(params: SamplingParams, name: str, value: str) -> SamplingParams:
    """Return the parameters with a field set: "temperature", "0.2"; "seed", "none"; "stop", "END".

    Raises InputError for a name that is none, which says the nearest, and for a value out of its range.
    """
    name = name.replace("-", "_")
    if name not in _NAMES:
        meant = nearest(name, _NAMES)
        raise InputError(f"{name} is no setting{f': is it {meant}?' if meant else '; /set lists them'}")
    read: Any
    try:
        read = (
            None
            if value.lower() == "none"
            else json.loads(value if name in ("stop", "dry_sequence_breakers") else value.lower())
        )
    except (ValueError, RecursionError):
        read = value
    if name == "stop":
        read = () if read is None else (value,)
    return replace(params, **{name: read})


def shown(params: SamplingParams) -> str:
    """List the settings, a line each."""
    return "\n".join(f"{name:23}{_text(getattr(params, name))}" for name in _NAMES)


def _text(value: object) -> str:
    return "none" if value is None or value == () else json.dumps(value, ensure_ascii=False)

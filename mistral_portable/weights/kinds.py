"""Kinds of models, by the `model_type` of a config.json: those that run, and why others do not."""

import reprlib
from collections.abc import Mapping
from typing import Any

from mistral_portable.errors import ConfigError

__all__ = ["check_kind"]

_KINDS = ("mistral", "ministral", "ministral3", "mixtral")
"""Supported values of `model_type`; for multimodal models that of `text_config`."""

_REASONS = {
    "mistral4": "latent attention (MLA)",
    "deepseek": "latent attention (MLA)",
    "voxtral": "sound",
    "pixtral": "vision tower",
    "mamba": "state space layer",
}
"""The parts that are missing here, by the beginning of a `model_type`."""


def check_kind(stated: Mapping[str, Any], source: str) -> None:
    """Check the kind of a config.json's model. stated: its fields. source: its path, for messages.

    The language model of a multimodal one counts, unless it hears. Raises ConfigError for a model that does not run.
    """
    outer = stated.get("model_type", "mistral")
    text = stated.get("text_config")
    kind = text.get("model_type", "mistral") if isinstance(text, Mapping) else outer
    for name in (outer, kind):
        reason = next((_REASONS[key] for key in _REASONS if isinstance(name, str) and name.startswith(key)), None)
        if reason:
            raise ConfigError(f"{source}: model_type={reprlib.repr(name)} is not supported: there is no {reason} here")
    if stated.get("audio_config"):
        raise ConfigError(f"{source}: audio_config is not supported: there is no sound here")
    if kind not in _KINDS:
        raise ConfigError(f"{source}: model_type={reprlib.repr(kind)} is not supported: {', '.join(_KINDS)} are")

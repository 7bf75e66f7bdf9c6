"""AutoConfig: opens the config of any model that this package reads."""

from pathlib import Path
from typing import Any

from mistral_portable.errors import InputError
from mistral_portable.transformers.configuration import MistralConfig

__all__ = ["AutoConfig"]

_KINDS = ("mistral", "ministral", "ministral3", "mixtral")


class AutoConfig:
    """Opens configs: each is a MistralConfig, whichever of Mistral's kinds the model is.

    >>> AutoConfig.from_pretrained("tiny").vocab_size
    1024
    """

    def __init__(self) -> None:
        raise OSError("AutoConfig is not made itself; call AutoConfig.from_pretrained(name)")

    @classmethod
    def from_pretrained(cls, name: str | Path, **arguments: Any) -> MistralConfig:
        """Read the config of a model; see `MistralConfig.from_pretrained` for the arguments and errors."""
        return MistralConfig.from_pretrained(name, **arguments)

    @classmethod
    def for_model(cls, model_type: str, **values: Any) -> MistralConfig:
        """Make a config of a kind, with the defaults of this kind. Raises InputError for one that is not Mistral's.

        >>> AutoConfig.for_model("mixtral").num_local_experts
        8
        """
        if model_type not in _KINDS:
            raise InputError(f"model_type={model_type!r:.40}: there are {', '.join(_KINDS)}")
        return MistralConfig.from_dict({"model_type": model_type, **values})

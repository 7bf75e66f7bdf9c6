"""AutoTokenizer: opens the tokenizer of any model that this package reads."""

import os
from typing import Any

from mistral_portable.transformers.tokenizer import MistralCommonTokenizer

__all__ = ["AutoTokenizer"]


class AutoTokenizer:
    """Opens tokenizers, each as a MistralCommonTokenizer.

    >>> AutoTokenizer.from_pretrained("tiny").encode("Hello")
    [1, 867]
    """

    def __init__(self) -> None:
        raise OSError("AutoTokenizer is not made itself; call AutoTokenizer.from_pretrained(name)")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *inputs: Any, **kwargs: Any
    ) -> MistralCommonTokenizer:
        """Open a model's tokenizer; see `MistralCommonTokenizer.from_pretrained`."""
        return MistralCommonTokenizer.from_pretrained(pretrained_model_name_or_path, *inputs, **kwargs)

"""Pairs of tokenizers over one file, ours and transformers', and the comparison of their calls."""

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from mistral_common.exceptions import MistralCommonException
from tokenizer.vocabularies import FILES
from transformers.tokenization_mistral_common import MistralCommonBackend

from mistral_portable.transformers import MistralCommonTokenizer

NAMES = ["v1", "v2", "v3", "v7", "tekken 240718"]


@cache
def ours(name: str, mode: str = "test") -> MistralCommonTokenizer:
    return MistralCommonTokenizer(FILES[name], mode=mode)


@cache
def theirs(name: str, mode: str = "test") -> Any:
    return MistralCommonBackend(FILES[name], mode=mode)


def outcome(call: Callable[[], Any]) -> Any:
    """The result of a call in a form for ==; if it raises, the type that catches the exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return comparable(call())
        except Exception as error:
            kinds = (ValueError, TypeError, LookupError, NotImplementedError, MistralCommonException)
            return {kind for kind in kinds if isinstance(error, kind)} or type(error)


def comparable(value: Any) -> Any:
    """A form for ==: arrays with kind, dtype and shape, encodings as dictionaries, other values unchanged."""
    if isinstance(value, Mapping):
        return {name: comparable(entry) for name, entry in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return type(value), str(value.dtype), tuple(value.shape), value.tolist()
    return value


def same(mine: Callable[[], Any], reference: Callable[[], Any]) -> None:
    """Both calls have the same outcome, except that ours refuses an array of rows of different lengths."""
    found, expected = outcome(mine), outcome(reference)
    assert found == expected or (found == {ValueError} and _ragged(expected))


def _ragged(result: Any) -> bool:
    """Whether transformers made an array of arrays, or dropped what follows an empty row (`torch.tensor` does)."""
    arrays = [entry for entry in result.values() if isinstance(entry, tuple)] if isinstance(result, dict) else []
    return any(dtype == "object" or (len(shape) == 2 and not shape[1]) for _, dtype, shape, _ in arrays)

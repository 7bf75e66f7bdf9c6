"""A short name for a model's weights, so that what was computed with others is refused."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.config import MistralConfig
from mistral_portable.weights.source import Tensor

__all__ = ["fingerprint"]

_DECIDING = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "layer_windows",
    "rope_scaling",
    "query_scale",
    "num_experts_per_tok",
)
_SAMPLES = 4  # places of each stored array that are read
_SAMPLE = 64  # bytes at each of them


def fingerprint(config: MistralConfig, tensors: Mapping[str, Tensor]) -> str:
    """32 hexadecimal digits: SHA-256 over what decides the keys and values of a text.

    These are the numbers of the config that the decoder computes with, each tensor's name, shape and type, and samples
    of its bytes.

    Samples instead of all bytes, since files have gigabytes: models that were trained apart differ nearly everywhere.
    """
    found = hashlib.sha256(repr([getattr(config, name) for name in _DECIDING]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\0{name} {tensor.shape} {tensor.dtype}".encode())
        for array in _stored(tensor):
            found.update(_samples(array))
    return found.hexdigest()[:32]


def _stored(tensor: object) -> Iterator[NDArray[Any]]:
    """The arrays that a tensor is made of, also those of tensors within it."""
    if isinstance(tensor, np.ndarray):
        yield tensor
    elif isinstance(tensor, list | tuple):
        for item in tensor:
            yield from _stored(item)
    elif is_dataclass(tensor):
        for field in fields(tensor):
            yield from _stored(getattr(tensor, field.name))


def _samples(array: NDArray[Any]) -> bytes:
    """The same bytes for equal arrays, whatever their strides: some numbers from the start, the end and between."""
    count = max(1, _SAMPLE // array.itemsize)
    places = np.linspace(0, max(0, array.size - count), _SAMPLES).astype(np.intp)
    flat = array.flat
    return b"".join(np.asarray(flat[place : place + count]).tobytes() for place in places.tolist())

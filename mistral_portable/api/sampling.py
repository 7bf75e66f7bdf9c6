"""How the answer to a request is sampled: as it says, else as the model's makers say, else by its API's defaults."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mistral_portable.sampling import SamplingParams

__all__ = ["UNSTATED", "Stated", "sampling_params"]

Stated = Mapping[str, Any]
"""Fields of SamplingParams that the model's makers state (`stated_sampling`), if the operator wants them to count."""

UNSTATED: Stated = MappingProxyType({})


def sampling_params(defaults: Mapping[str, Any], stated: Stated, given: Mapping[str, Any]) -> SamplingParams:
    """The parameters, by names of SamplingParams' fields. defaults: those of the API. given: what a request says.

    Raises InputError, naming the field, for a value out of range.
    """
    return SamplingParams(**{**defaults, **stated, **given})

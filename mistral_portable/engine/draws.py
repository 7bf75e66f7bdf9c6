"""How a device is to draw the tokens of answers."""

from collections.abc import Sequence

import numpy as np

from mistral_portable.boundary import Draws
from mistral_portable.sampling import Sampler

__all__ = ["draws_of"]


def draws_of(samplers: Sequence[Sampler], ahead: Sequence[int]) -> Draws:
    """The draws of a step, a row for each sampler, which is greedy or draws by rules that a device knows.

    ahead: of each answer, the number of tokens that are chosen before this one and not known yet.
    """
    params = [sampler.params for sampler in samplers]
    numbers = [
        sampler.number(count) if sampler.params.is_drawn else 0.0
        for sampler, count in zip(samplers, ahead, strict=True)
    ]
    return Draws(
        np.array(numbers, np.float64),
        np.array([own.temperature for own in params], np.float64),
        np.array([min(own.top_k, np.iinfo(np.int32).max) for own in params], np.int32),
        np.array([own.top_p for own in params], np.float64),
        np.array([own.min_p for own in params], np.float64),
    )

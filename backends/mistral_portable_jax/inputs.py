"""A StepPlan as arrays, padded so that steps of about the same size share a compiled function."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.graph import Rotation
from mistral_portable_jax.step import NOWHERE, Inputs

__all__ = ["bucket", "step_inputs"]

_FEWEST = 8


def bucket(count: int) -> int:
    """The padded size: 0, 1, 8, 16, 32, 64, ..."""
    return count if count <= 1 else max(_FEWEST, 1 << (count - 1).bit_length())


def step_inputs(plan: StepPlan, spec: CacheSpec, rotations: Sequence[Rotation], dtype: str) -> Inputs:
    """Two sequences of 2 and 3 tokens: 8 tokens, 8 sequences of which the longest has 8; sequence is 0 0 1 1 1 0 0 0,
    place 0 1 0 1 2 0 0 0, packed 0 1 0 .. | 2 3 4 0 .. | 0 .. A padded token is written to no slot."""
    lengths = np.diff(plan.starts)
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(sequence)) - plan.starts[sequence]
    packed = np.zeros((bucket(len(lengths)), bucket(int(lengths.max()))), np.int32)
    packed[sequence, place] = np.arange(len(sequence))
    tokens = bucket(len(sequence))
    positions = _padded(plan.positions, tokens)
    table_dtype = np.float64 if dtype == "float64" else np.float32
    return Inputs(
        tokens=_padded(plan.tokens, tokens),
        positions=positions,
        rows=_padded(plan.rows, bucket(len(plan.rows))),
        angles=tuple(rotation.table(positions, table_dtype) for rotation in rotations),
        sequence=_padded(sequence, tokens),
        place=_padded(place, tokens),
        packed=packed,
        lanes=_padded(plan.lanes, len(packed)),
        last=_padded(plan.positions[plan.starts[1:] - 1], len(packed)),
        slots=tuple(_padded(reads.slots, tokens, NOWHERE) for reads in plan.groups),
        rings=tuple(np.int32(group.slots) for group in spec.groups),
    )


def _padded(array: NDArray[np.integer[Any]], size: int, value: int = 0) -> Any:
    return np.pad(array.astype(np.int32), (0, size - len(array)), constant_values=value)

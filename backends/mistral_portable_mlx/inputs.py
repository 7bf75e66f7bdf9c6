"""A StepPlan's integers as arrays: everything in which one step differs from the next of the same shape."""

from collections.abc import Sequence
from functools import lru_cache

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.graph import Rotation

__all__ = ["step_inputs"]


def step_inputs(
    plan: StepPlan, spec: CacheSpec, rotations: Sequence[Rotation], slots: list[list[int]]
) -> dict[str, mx.array]:
    """tokens, positions [T], rows [R]; cos.X, sin.X [T, 1, 2, d / 2] for each X of `rotations`;

    per layer group slots.G [T], first.G [T], the oldest position that each token sees; per group and sequence
    held.G.S, the position in each of the lane's allocated `slots[G][S]`.
    """
    inputs = {"tokens": mx.array(plan.tokens), "positions": mx.array(plan.positions), "rows": mx.array(plan.logit_rows)}
    for name, rotation in enumerate(rotations):
        cos, sin = _angles(plan.positions, rotation)
        inputs |= {f"cos.{name}": mx.array(cos), f"sin.{name}": mx.array(sin)}
    last = plan.positions[plan.query_starts[1:] - 1].tolist()
    for index, (group, reads) in enumerate(zip(spec.groups, plan.groups, strict=True)):
        inputs[f"slots.{index}"] = mx.array(reads.slot_mapping)
        # This backend's translation of `cache.window.visible`: first <= key <= query.
        first = plan.positions * 0 if group.window is None else np.maximum(plan.positions - group.window + 1, 0)
        inputs[f"first.{index}"] = mx.array(first.astype(np.int32))
        for s, position in enumerate(last):
            inputs[f"held.{index}.{s}"] = _held(position, group.slots, slots[index][s])
    return inputs


def _angles(positions: NDArray[np.int32], rotation: Rotation) -> tuple[NDArray[np.float32], ...]:
    """Not by `mx.fast.rope`, which multiplies in float32 and turns the pairs of position 32,768 by up to 0.002 too
    much. The sine's first half is negative, as (a, b) -> (a cos - b sin, ...)."""
    table: NDArray[np.float32] = rotation.table(positions)[:, None]
    cos, sin = table[:, :, :1], table[:, :, 1:]
    return np.repeat(cos, 2, axis=2), np.concatenate([-sin, sin], axis=2)


def _held(last: int, slots: int, allocated: int) -> mx.array:
    """The position in each of the allocated slots once `last` is written: the latest one congruent to the slot.

    With 5 slots and last 5: 5 1 2 3 4. Until a ring is full, slot and position are the same, and those beyond `last`
    are hidden as any later position.
    """
    if last < slots:
        return _unwrapped(allocated)
    return mx.array((last - (last - np.arange(allocated)) % slots).astype(np.int32))


@lru_cache(maxsize=16)
def _unwrapped(allocated: int) -> mx.array:
    held = mx.arange(allocated, dtype=mx.int32)
    mx.eval(held)
    return held

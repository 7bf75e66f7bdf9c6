"""A StepPlan's integers as arrays: everything in which one step differs from the next of the same shape."""

from collections.abc import Collection
from functools import lru_cache

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable_mlx.lowering import angles_name

__all__ = ["step_inputs"]


def step_inputs(
    plan: StepPlan, spec: CacheSpec, angles: Collection[tuple[int, float]], slots: list[list[int]]
) -> dict[str, mx.array]:
    """tokens, positions [T], rows [R]; cos.X, sin.X [T, 1, 2, d / 2] for each (head_dim, theta) of `angles`;

    per layer group slots.G [T], first.G [T], the oldest position that each token sees; per group and sequence
    held.G.S, the position in each of the lane's allocated `slots[G][S]`.
    """
    inputs = {"tokens": mx.array(plan.tokens), "positions": mx.array(plan.positions), "rows": mx.array(plan.rows)}
    for head_dim, theta in angles:
        cos, sin = _angles(plan.positions, head_dim, theta)
        name = angles_name(head_dim, theta)
        inputs |= {f"cos.{name}": mx.array(cos), f"sin.{name}": mx.array(sin)}
    last = plan.positions[plan.starts[1:] - 1].tolist()
    for index, (group, reads) in enumerate(zip(spec.groups, plan.groups, strict=True)):
        inputs[f"slots.{index}"] = mx.array(reads.slots)
        # This backend's translation of `cache.window.visible`: first <= key <= query.
        first = plan.positions * 0 if group.window is None else np.maximum(plan.positions - group.window + 1, 0)
        inputs[f"first.{index}"] = mx.array(first.astype(np.int32))
        for s, position in enumerate(last):
            inputs[f"held.{index}.{s}"] = _held(position, group.slots, slots[index][s])
    return inputs


def _angles(positions: NDArray[np.int32], head_dim: int, theta: float) -> tuple[NDArray[np.float32], ...]:
    """Computed in float64, as positions may be large: `mx.fast.rope` multiplies in float32, which turns the pairs of
    position 32,768 by up to 0.002 too much. The sine's first half is negative, as (a, b) -> (a cos - b sin, ...)."""
    half = head_dim // 2
    turns = positions[:, None, None, None] * float(theta) ** (-np.arange(half, dtype=np.float64) / half)
    cos, sin = np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32)
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

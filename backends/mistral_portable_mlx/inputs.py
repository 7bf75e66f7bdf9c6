"""Step inputs: everything in which one step differs from another of the same shape, as MLX arrays."""

from collections.abc import Sequence
from functools import lru_cache

import mlx.core as mx
import numpy as np

from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.graph import Rotation

__all__ = ["step_inputs"]


def step_inputs(
    plan: StepPlan, spec: CacheSpec, rotations: Sequence[Rotation], slots: list[list[int]]
) -> dict[str, mx.array]:
    """Turn a plan into arrays by name, integers in int32.

    tokens, positions [T]; logit_rows [R]; cos.X, sin.X float32 [T, 1, 2, d / 2] for each index X of `rotations`;
    for each layer group G slots.G [T], the offset of each token in its sequence's page, and first.G [T], the oldest
    position that it sees; for each group and sequence S held.G.S, the position in each of the `slots[G][S]` allocated
    slots of the page.
    """
    inputs = {
        "tokens": mx.array(plan.tokens),
        "positions": mx.array(plan.positions),
        "logit_rows": mx.array(plan.logit_rows),
    }
    for name, rotation in enumerate(rotations):
        # Not by `mx.fast.rope`: it multiplies in float32, and is off by up to 0.002 radians at position 32,768.
        cos, sin = rotation.signed_table(plan.positions)
        inputs |= {f"cos.{name}": mx.array(cos), f"sin.{name}": mx.array(sin)}
    last = (plan.ends - 1).tolist()
    for index, (group, reads) in enumerate(zip(spec.groups, plan.groups, strict=True)):
        inputs[f"slots.{index}"] = mx.array(reads.slot_mapping % np.int32(group.page_size))
        # This backend's translation of `cache.window.visible`: first <= key <= query.
        first = plan.positions * 0 if group.window is None else np.maximum(plan.positions - group.window + 1, 0)
        inputs[f"first.{index}"] = mx.array(first.astype(np.int32))
        for s, position in enumerate(last):
            inputs[f"held.{index}.{s}"] = _held(position, group.page_size, slots[index][s])
    return inputs


def _held(last: int, page_size: int, allocated: int) -> mx.array:
    """The position in each of the allocated slots once `last` is written: the latest one congruent to the slot.

    Example, a page of 5 slots and last 5: 5 1 2 3 4. Until a ring is full, slot and position are equal, and the mask
    hides those beyond `last` like any later position.
    """
    if last < page_size:
        return _unwrapped(allocated)
    return mx.array((last - (last - np.arange(allocated)) % page_size).astype(np.int32))


@lru_cache(maxsize=16)
def _unwrapped(allocated: int) -> mx.array:
    held = mx.arange(allocated, dtype=mx.int32)
    mx.eval(held)
    return held

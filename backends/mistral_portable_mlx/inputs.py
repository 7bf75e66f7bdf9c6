"""Step inputs: everything in which one step differs from another of the same shape, as MLX arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.graph import Rotation
from mistral_portable_mlx.cache import Seats

__all__ = ["Span", "spans_of", "step_inputs"]


class Span(NamedTuple):
    """Sequences of a stack that are attended as one, with equally many tokens, in rows that follow each other.

    rows: of the stack. tokens: on the axis of the tokens of the stack's sequences. In a step of one token each, a stack
    of three pages is `Span(range(3), range(3))`.
    """

    rows: range
    tokens: range


def spans_of(plan: StepPlan, seats: Seats) -> tuple[Span, ...]:
    """One span where all sequences have equally many tokens, in rows that follow each other, else one for each."""
    counts = [plan.spans[s].stop - plan.spans[s].start for s in seats.sequences]
    first, last = seats.rows[0], seats.rows[-1]
    if len(set(counts)) == 1 and last - first + 1 == len(counts):
        return (Span(range(first, last + 1), range(sum(counts))),)
    ends = np.cumsum(counts).tolist()
    return tuple(
        Span(range(row, row + 1), range(end - count, end))
        for row, end, count in zip(seats.rows, ends, counts, strict=True)
    )


def step_inputs(
    plan: StepPlan, spec: CacheSpec, rotations: Sequence[Rotation], taken: Sequence[Sequence[Seats]]
) -> dict[str, mx.array]:
    """Turn a plan into arrays by name, integers in int32 but for indices of writes, which MLX wants in uint32.

    tokens [T]; logit_rows [R]; cos.X, sin.X float32 [T, 1, 2, d / 2] for each index X of `rotations`. For each layer
    group G and stack K that the step takes (`Cache.take`), with n tokens of its sequences, one after the other in the
    order of its rows: positions.G.K [n]; first.G.K [n], the oldest position that each sees; held.G.K, the position in
    each slot of each row, [rows, slots]; rows.G.K and slots.G.K [n, 1], where each is written. In a step of
    several sequences order.G.K [n] has the token of each, and back.G [T] the place of each token behind all K; where
    there is one stack, rows and slots are in the order of the plan's tokens, so that keys need not be put in order.
    """
    inputs = {"tokens": mx.array(plan.tokens), "logit_rows": mx.array(plan.logit_rows)}
    for name, rotation in enumerate(rotations):
        # Not by `mx.fast.rope`: it multiplies in float32, and is off by up to 0.002 radians at position 32,768.
        cos, sin = rotation.signed_table(plan.positions)
        inputs |= {f"cos.{name}": mx.array(cos), f"sin.{name}": mx.array(sin)}
    last, spans = plan.ends - 1, plan.spans
    for group, (own, reads, seats) in enumerate(zip(spec.groups, plan.groups, taken, strict=True)):
        # This backend's translation of `cache.window.visible`: first <= key <= query.
        first = plan.positions * 0 if own.window is None else np.maximum(plan.positions - own.window + 1, 0)
        orders, rows = [], np.zeros(len(plan.tokens), np.uint32)
        for seat in seats:
            orders.append(np.concatenate([np.arange(spans[s].start, spans[s].stop) for s in seat.sequences]))
            for row, s in zip(seat.rows, seat.sequences, strict=True):
                rows[spans[s]] = row
        slots = (reads.slot_mapping % own.page_size).astype(np.uint32)
        for stack, (seat, order) in enumerate(zip(seats, orders, strict=True)):
            written = order if len(seats) > 1 else slice(None)
            newest = np.zeros(len(seat.stack.pages), np.int32)  # of rows that take no part, any position
            newest[list(seat.rows)] = last[list(seat.sequences)]
            held = _held(newest, own.page_size, seat.stack.slots)
            made = {
                "positions": plan.positions[order],
                "first": first[order].astype(np.int32),
                "held": held,
                "rows": rows[written, None],
                "slots": slots[written, None],
            }
            if len(spans) > 1:
                made["order"] = order.astype(np.int32)
            inputs |= {f"{name}.{group}.{stack}": mx.array(array) for name, array in made.items()}
        if len(spans) > 1:
            inputs[f"back.{group}"] = mx.array(np.argsort(np.concatenate(orders)).astype(np.int32))
    return inputs


def _held(last: NDArray[np.int32], page_size: int, slots: int) -> NDArray[np.int32]:
    """The position in each of the allocated slots once `last` is written: the latest one congruent to the slot.

    last: [S] -> [S, slots]. Example, a page of 5 slots and last 5: 5 1 2 3 4. Until a ring is full, slot and position
    are equal, and the mask hides those beyond `last` like any later position.
    """
    every = np.arange(slots, dtype=np.int32)[None]
    latest = last[:, None]
    return np.where(latest < page_size, every, latest - (latest - every) % np.int32(page_size))

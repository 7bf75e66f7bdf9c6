"""best_lengths: how many drafted tokens of each sequence make a step worth the most."""

from collections.abc import Sequence
from heapq import heapify, heapreplace

__all__ = ["best_lengths"]

_WORTH = 1.1  # times the tokens per second without drafts: what is learned is not exact


def best_lengths(chances: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[int]:
    """Choose the lengths of drafts that maximise the expected tokens of a step per second; none for a gain below 10 %.

    chances: for each sequence of the step and each token of its draft the chance that it is right if those before it
    are. seconds: of steps of 0, 1, 2 ... tokens (`StepCosts.seconds`); no step is longer. Where the time of a step
    without drafts is not known, there are none: to know it comes first.

    A sequence makes one token, and one more for each drafted token that is right along with all before it. Chances
    fall along a draft, so the likeliest tokens of all drafts are taken one after the other.

    >>> best_lengths([[0.9, 0.9, 0.9], [0.5]], [0, 1, 1, 1.1, 1.5, 1.5, 4])    # 2 + 0.9 + 0.81 + 0.729 in 1.5 s
    [3, 0]
    >>> best_lengths([[0.2, 0.2]], [0, 1, 1.5, 1.5])    # 1.24 tokens in 1.5 s are fewer than 1 in 1 s
    [0]
    """
    lengths = [0] * len(chances)
    made = float(len(chances))
    tokens = len(chances)
    if tokens >= len(seconds) or not seconds[tokens]:
        return lengths
    ranked = [(-some[0], number) for number, some in enumerate(chances) if some]
    heapify(ranked)
    best, order, taken = _WORTH * made / seconds[tokens], list[int](), 0
    while ranked and tokens + 1 < len(seconds):
        chance, number = ranked[0]
        made -= chance
        tokens += 1
        order.append(number)
        if made / seconds[tokens] > best:
            best, taken = made / seconds[tokens], len(order)
        lengths[number] += 1
        rest = chances[number][lengths[number] :]
        heapreplace(ranked, (chance * rest[0] if rest else 0.0, number))
        if ranked[0][0] == 0:
            break
    for number in order[taken:]:
        lengths[number] -= 1
    return lengths

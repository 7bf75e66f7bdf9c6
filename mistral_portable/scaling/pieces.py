"""Pieces: a batch's requests, sorted by how their prompts begin, cut where neighbours have least in common."""

from collections.abc import Iterator, Sequence

__all__ = ["cut", "piece_size"]


def cut(beginnings: Sequence[str], size: int) -> Iterator[tuple[int, int]]:
    """Cut a sorted list into pieces [begin, end) of at most `size`, and at least half as many but for the last one.

    Of the places that this allows, each cut is at the one where the texts left and right of it have the shortest
    common beginning; of several, the last one.

    >>> list(cut(["a cat", "a cow", "a dog", "one", "two"], 4))
    [(0, 3), (3, 5)]
    """
    begin = 0
    while len(beginnings) - begin > size:
        places = range(begin + size, begin + (size + 1) // 2 - 1, -1)
        end = min(places, key=lambda place: _common(beginnings[place - 1], beginnings[place]))
        yield begin, end
        begin = end
    if begin < len(beginnings):
        yield begin, len(beginnings)


def piece_size(total: int, replicas: int, lanes: int) -> int:
    """How many requests a piece has: enough to fill the lanes for a while, and few enough that each replica gets eight.

    >>> piece_size(1_000_000, replicas=2, lanes=8), piece_size(100, replicas=4, lanes=8)
    (64, 8)
    """
    return max(lanes, min(8 * lanes, total // (8 * replicas)))


def _common(left: str, right: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))

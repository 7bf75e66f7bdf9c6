"""Prompts are read beside sequences that decode as fast as these are not slowed down too much."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.engine.pace import Pace

MOST = 512


@given(
    decoding=st.integers(1, 20),
    fixed=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    block=st.sampled_from([0.01, 0.1, 0.37, 0.72, 1.0, 3.0]),
    first=st.booleans(),
)
def test_the_most_blocks_that_take_no_longer_than_they_may(
    decoding: int, fixed: float, block: float, first: bool
) -> None:
    """Times are in those of a step that only decodes. A step that reads has a cost of its own, and one of each block.

    first: whether a step without reading came before.
    """
    pace, least = Pace(), decoding // 8 + 1

    def seconds(blocks: int) -> float:
        return 1 + fixed + block * blocks

    if first:
        pace.observe(decoding, 0, 1.0)
    allowed = max(2.4 if first else 0.0, 1.25 * seconds(least))
    possible = range(least, -(-(decoding + MOST) // 8) + 1)

    def most(limit: float) -> int:
        return max(blocks for blocks in possible if blocks == least or seconds(blocks) <= limit)

    sizes = Counter[int]()
    for step in range(1200):
        room = min(pace.room(decoding), MOST)
        blocks = -(-(decoding + room) // 8)
        pace.observe(decoding, room, seconds(blocks))
        if step >= 900:
            sizes[blocks] += 1
    # Its note of the shortest time rises slowly, so it may still allow a little less.
    usual = range(most(0.95 * allowed), most(allowed) + 1)
    assert sum(sizes[blocks] for blocks in usual) >= 0.95 * sizes.total()


def test_steps_whose_size_it_did_not_choose_do_not_count() -> None:
    pace = Pace()
    pace.observe(4, 0, 1.0)
    assert pace.room(4) == 4
    pace.observe(4, 512, 99.0)
    pace.observe(0, 512, 99.0)
    assert pace.room(4) == 4
    pace.observe(4, 4, 1.5)
    assert pace.room(4) == 12


@given(outlier=st.floats(2, 100), at=st.integers(0, 20))
def test_one_step_that_the_system_held_up_makes_later_ones_no_longer(outlier: float, at: int) -> None:
    """A block more than it must takes too long, and is still not taken when one of the least size took very long."""
    pace, more = Pace(), 0
    pace.observe(4, 0, 1.0)
    for step in range(100):
        room = pace.room(4)
        blocks = (4 + room) // 8
        pace.observe(4, room, {1: 1.6, 2: 2.7}.get(blocks, 9.0) * (outlier if step == at else 1))
        more += blocks > 1
    assert more <= 5


def test_docstring_example() -> None:
    pace, times = Pace(), {1: 37, 2: 57, 3: 76, 4: 95}
    pace.observe(4, 0, 27)
    rooms = []
    for _ in range(40):
        rooms.append(pace.room(4))
        pace.observe(4, rooms[-1], times[(4 + rooms[-1]) // 8])
    assert rooms[:6] == [4, 12, 28, 20, 12, 12]
    assert rooms.count(20) == 2

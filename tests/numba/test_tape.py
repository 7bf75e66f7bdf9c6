"""Tapes of drawn instructions: threads wait where they must, and buffers in use at the same time do not overlap."""

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from mistral_portable_numba.tape import Buffer, Instruction, Layout, Place, bits, lay_out, set_waits

SIZES = st.integers(0, 5)


@st.composite
def programs(draw: st.DrawFn) -> list[Instruction]:
    """Instructions that read and write some of a few buffers and other objects."""
    buffers = st.builds(Buffer, st.sampled_from(["T", "R"]), st.integers(1, 200))
    things: st.SearchStrategy[object] = st.sampled_from([*draw(st.lists(buffers, min_size=1, max_size=6)), "a", "b"])
    some = st.lists(things, max_size=3)
    return draw(st.lists(st.builds(Instruction, st.just("kernel"), st.just([]), some, some), max_size=12))


def clash(first: Instruction, second: Instruction) -> bool:
    """Whether the second must not begin before the first has ended."""
    reads, writes = set(second.reads), set(second.writes)
    return bool(set(first.writes) & (reads | writes) or set(first.reads) & writes)


def uses(instructions: list[Instruction]) -> dict[Buffer, list[int]]:
    """The phases, between two waits, in which each buffer is used."""
    found: dict[Buffer, list[int]] = {}
    phase = 0
    for instruction in instructions:
        for thing in (*instruction.reads, *instruction.writes):
            if isinstance(thing, Buffer):
                found.setdefault(thing, []).append(phase)
        phase += instruction.wait
    return found


def ranges(layout: Layout, tokens: int, rows: int) -> dict[Buffer, range]:
    """The range of bytes of each buffer in the memory."""
    counts = {"T": tokens, "R": rows}
    return {
        buffer: range(begin, begin + counts[buffer.rows] * buffer.stride) for buffer, begin in layout.offsets.items()
    }


def apart(one: range, other: range) -> bool:
    """Whether two ranges have no byte in common."""
    return not one or not other or one.stop <= other.start or other.stop <= one.start


@given(programs())
def test_a_wait_stands_between_instructions_that_clash(instructions: list[Instruction]) -> None:
    set_waits(instructions)
    for first, second in combinations(range(len(instructions)), 2):
        if clash(instructions[first], instructions[second]):
            assert any(instruction.wait for instruction in instructions[first:second])


@given(programs())
def test_threads_wait_only_where_they_must(instructions: list[Instruction]) -> None:
    set_waits(instructions)
    since = 0
    for index, after in enumerate(instructions[1:]):
        if instructions[index].wait:
            assert any(clash(before, after) for before in instructions[since : index + 1])
            since = index + 1


@given(programs(), SIZES, SIZES)
def test_buffers_in_use_at_the_same_time_lie_apart(instructions: list[Instruction], tokens: int, rows: int) -> None:
    set_waits(instructions)
    found = uses(instructions)
    layout = lay_out(instructions, (), {"kernel": 1}, tokens, rows)
    places = ranges(layout, tokens, rows)
    assert places.keys() == found.keys()
    for one, other in combinations(found, 2):
        if min(found[one]) <= max(found[other]) and min(found[other]) <= max(found[one]):
            assert apart(places[one], places[other])
    for place in places.values():
        assert (layout.memory.ctypes.data + place.start) % 64 == 0
        assert 0 <= place.start <= place.stop <= layout.memory.nbytes


@given(programs(), st.data())
def test_outputs_keep_their_memory_until_the_end(instructions: list[Instruction], data: st.DataObject) -> None:
    set_waits(instructions)
    found = uses(instructions)
    if not found:
        return
    kept = data.draw(st.sampled_from(list(found)))
    kept.last = len(instructions)
    places = ranges(lay_out(instructions, [kept], {"kernel": 1}, 3, 2), 3, 2)
    for other in found.keys() - {kept}:
        if max(found[other]) >= min(found[kept]):
            assert apart(places[kept], places[other])


def test_buffers_share_memory_in_turn() -> None:
    a, b, c = (Buffer("T", 64) for _ in range(3))
    instructions = [Instruction("k", [], [a], [b]), Instruction("k", [], [b], [c]), Instruction("k", [], [c], ["out"])]
    set_waits(instructions)
    layout = lay_out(instructions, (), {"k": 1}, 100, 0)
    assert layout.offsets[a] == layout.offsets[c] != layout.offsets[b]
    assert layout.memory.nbytes < 3 * 6400


def test_the_tape_holds_kernels_and_arguments() -> None:
    buffer = Buffer("T", 100)
    instructions = [
        Instruction("one", [7, Place(buffer), Place(buffer, 12)], [], [buffer]),
        Instruction("two", [bits(0.5)], [buffer], []),
    ]
    set_waits(instructions)
    layout = lay_out(instructions, (), {"one": 111, "two": 222}, 2, 0)
    counters = [layout.counters[index].ctypes.data for index in range(2)]
    assert counters[1] - counters[0] == 64
    at = layout.memory.ctypes.data + layout.offsets[buffer]
    assert layout.arguments[0].tolist() == [counters[0], 7, at, at + 12]
    assert layout.arguments[1, :2].tolist() == [counters[1], np.float64(0.5).view(np.int64)]
    assert layout.tape.tolist() == [
        [111, layout.arguments[0].ctypes.data, 1],
        [222, layout.arguments[1].ctypes.data, 1],
    ]

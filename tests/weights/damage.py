"""Hypothesis strategies for damage to a file: bytes overwritten, inserted, deleted, cut off, repeated."""

from collections.abc import Callable

from hypothesis import strategies as st

__all__ = ["NUMBERS", "Damage", "damage"]

# Small numbers, signs and powers of two that overflow counts, offsets and products of them.
NUMBERS = st.sampled_from(
    [0, 1, 2, 31, 33, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
)
_BYTES = st.binary(min_size=1, max_size=9) | NUMBERS.map(lambda n: n.to_bytes(8, "little"))
_PLACE = st.floats(0, 1)  # relative to the header or the file

Damage = Callable[[bytes], bytes]


def damage(header: int) -> st.SearchStrategy[list[Damage]]:
    """Edits of a file whose header has about so many bytes: most are inside the header, some anywhere."""

    def at(place: float, everywhere: bool, data: bytes) -> int:
        return int(place * (len(data) if everywhere else min(header, len(data))))

    def overwrite(place: float, everywhere: bool, new: bytes) -> Damage:
        return lambda data: data[: at(place, everywhere, data)] + new + data[at(place, everywhere, data) + len(new) :]

    def insert(place: float, everywhere: bool, new: bytes) -> Damage:
        return lambda data: data[: at(place, everywhere, data)] + new + data[at(place, everywhere, data) :]

    def delete(place: float, everywhere: bool, new: bytes) -> Damage:
        return lambda data: data[: at(place, everywhere, data)] + data[at(place, everywhere, data) + len(new) :]

    def truncate(place: float, everywhere: bool, new: bytes) -> Damage:
        return lambda data: data[: at(place, everywhere, data)]

    def duplicate(place: float, everywhere: bool, new: bytes) -> Damage:
        return lambda data: data + data[at(place, everywhere, data) :]

    edit = st.sampled_from([overwrite, overwrite, insert, delete, truncate, duplicate])
    return st.lists(
        st.tuples(edit, _PLACE, st.sampled_from([False, False, True]), _BYTES).map(lambda e: e[0](*e[1:])),
        min_size=1,
        max_size=4,
    )

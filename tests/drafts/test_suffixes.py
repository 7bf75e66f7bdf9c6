"""The longest end of a text that stood in it before, and what stood behind it."""

from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.drafts import Suffixes

texts = st.integers(1, 6).flatmap(lambda ids: st.lists(st.integers(0, ids), max_size=40))


def occurrences(text: list[int], length: int) -> list[int]:
    """The places behind the ends of `length` tokens before the last one."""
    return [end for end in range(length, len(text)) if text[end - length : end] == text[len(text) - length :]]


@given(text=texts, cut=st.integers(0, 40), most=st.integers(0, 30))
def test_it_is_the_longest_one_and_goes_on_as_before(text: list[int], cut: int, most: int) -> None:
    suffixes = Suffixes()
    suffixes.extend(text[:cut])
    suffixes.extend(text[cut:])
    longest = max((length for length in range(len(text)) if occurrences(text, length)), default=0)
    assert suffixes.match == longest
    found = suffixes.continuation(most)
    if not longest:
        assert found == []
        return
    # Where the text ends, it goes on with what was found.
    assert len(found) == most
    assert any(([*text, *found][end : end + most]) == found for end in occurrences(text, longest))


def test_the_latest_of_several_places_is_taken() -> None:
    suffixes = Suffixes()
    suffixes.extend([1, 2, 3, 1, 2, 4, 1, 2])
    assert (suffixes.match, suffixes.continuation(2)) == (2, [4, 1])


def test_the_automaton_grows_with_the_text_alone() -> None:
    suffixes = Suffixes()
    suffixes.extend([7] * 5000)
    assert (suffixes.match, suffixes.continuation(3)) == (4999, [7, 7, 7])

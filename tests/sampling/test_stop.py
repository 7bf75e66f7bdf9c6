from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mistral_portable.sampling import StopMatcher

texts = st.text(alphabet="ab", max_size=20)
stop_lists = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4)


def first_match(text: str, stops: list[str]) -> tuple[int, str | None]:
    """The definition: the stop that is complete first, the longest of those; (start, stop)."""
    found = [(text.find(stop), stop) for stop in stops if stop in text]
    return min(found, key=lambda match: (match[0] + len(match[1]), match[0]), default=(len(text), None))


def run(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(tuple(stops))
    shown = "".join(matcher.push(piece) for piece in pieces) + matcher.flush()
    return shown, matcher.matched


@given(text=texts, stops=stop_lists, cuts=st.lists(st.integers(0, 20)))
@example(text="abab", stops=["abb", "ba"], cuts=[1, 2, 3])  # two candidates are open at once
@example(text="aab", stops=["ab", "b"], cuts=[])  # both are complete on the last character
@example(text="aaab", stops=["aab"], cuts=[1, 2, 3])  # the candidate starts anew within itself
def test_any_cutting_gives_the_text_before_the_first_match(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[i:j] for i, j in pairwise(edges)]
    start, stop = first_match(text, stops)
    assert run(pieces, stops) == (text[:start], stop)


@given(text=texts, stops=stop_lists)
def test_nothing_is_held_back_that_cannot_become_a_stop(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(tuple(stops))
    shown = ""
    for end, character in enumerate(text, 1):
        shown += matcher.push(character)
        held = text[len(shown) : end]
        if matcher.matched is not None:
            return
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_match_is_known_at_the_piece_that_completes_it() -> None:
    matcher = StopMatcher(("</s>", "User:"))
    assert (matcher.push("Hi </"), matcher.matched) == ("Hi ", None)
    assert (matcher.push("s> and"), matcher.matched) == ("", "</s>")
    assert matcher.push(" more") == ""
    assert matcher.flush() == ""


@pytest.mark.parametrize("stops", [(), ("zz",)])
def test_without_a_match_all_text_comes_out(stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(stops)
    assert matcher.push("fuz") + matcher.push("") + matcher.push("y z") + matcher.flush() == "fuzy z"
    assert matcher.flush() == ""

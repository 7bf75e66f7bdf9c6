"""Suffixes: finds the longest end of a text that stood in it before, token by token as the text grows."""

from collections.abc import Iterable

__all__ = ["Suffixes"]

_NEAREST = 16  # ends of a text, from the longest on, whose place is noted anew with each token


class Suffixes:
    """Suffix automaton of a text: extended by a token in amortized constant time, whatever the text's length.

    After A. Blumer et al., "The smallest automaton recognizing the subwords of a text" (1985). A state stands for ends
    of the text so far that occur in it at the same places; `link` leads to the longest shorter one that occurs at more.

    >>> text = Suffixes()
    >>> text.extend([7, 1, 2, 3, 4, 7, 1, 2])
    >>> text.match, text.continuation(4)    # 7 1 2 stood before 3 4 7 1
    (3, [3, 4, 7, 1])
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.match = 0
        """Length of the longest end of the text that also ends before its last token; 0 if even that one is new."""
        self._place = 0  # of the token behind its latest occurrence but the last
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._latest = [0]  # the place behind an occurrence; the latest one for states that are near the newest end
        self._last = 0

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the text."""
        for token in tokens:
            self._append(token)

    def continuation(self, most: int) -> list[int]:
        """Return what stood behind the latest place where the longest known end occurred before, up to `most` tokens;
        [] without one. Where the text ends it goes on with itself: behind 1 2 1 2 comes 1 2 1 2 ..."""
        if not self.match:
            return []
        found = self.tokens[self._place : self._place + most]
        period = len(self.tokens) - self._place
        while len(found) < most:
            found.append(found[-period])
        return found

    def _append(self, token: int) -> None:
        following, link, length = self._next, self._link, self._length
        self.tokens.append(token)
        end = len(self.tokens)
        new = self._add({}, 0, end, end)
        state = self._last
        while state >= 0 and token not in following[state]:
            following[state][token] = new
            state = link[state]
        if state >= 0:
            reached = following[state][token]
            if length[state] + 1 != length[reached]:  # it stands for longer ends, too, which do not occur here
                shorter = self._add(dict(following[reached]), link[reached], length[state] + 1, self._latest[reached])
                link[reached] = shorter
                while state >= 0 and following[state].get(token) == reached:
                    following[state][token] = shorter
                    state = link[state]
                reached = shorter
            link[new] = reached
        self._last = new
        self._note(link[new], end)

    def _note(self, state: int, end: int) -> None:
        """Note where the longest known end has occurred, and that it and shorter ones occur at the text's end."""
        self.match, self._place = self._length[state], self._latest[state]
        for _ in range(_NEAREST):
            if state <= 0:
                break
            self._latest[state] = end
            state = self._link[state]

    def _add(self, following: dict[int, int], link: int, length: int, latest: int) -> int:
        self._next.append(following)
        self._link.append(link)
        self._length.append(length)
        self._latest.append(latest)
        return len(self._length) - 1

"""StopMatcher: finds stop strings in text that arrives in pieces, and shows nothing of them."""

__all__ = ["StopMatcher"]


class StopMatcher:
    """Passes streamed text through up to the first stop string; the stop and what follows never leave it.

    Text that could still become a stop string is held back until it is decided:

    >>> matcher = StopMatcher(("</s>",))
    >>> [matcher.push(piece) for piece in ("a <", "b </", "s> c", "d")], matcher.matched
    (['a ', '<b ', '', ''], '</s>')

    The first stop string is the one that is complete first, so that no token is generated after it; of
    several that end on the same character, the longest. How the text is cut into pieces makes no difference.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.matched: str | None = None
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next piece of text; return what may be shown now, "" once a stop has been found."""
        if self.matched is not None:
            return ""
        text = self._held + text
        starts = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if starts:
            start, self.matched = min(starts, key=lambda found: (found[0] + len(found[1]), found[0]))
            self._held = ""
            return text[:start]
        shown = len(text) - self._undecided(text)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """At the end of the text: return what is still held back, which is no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0

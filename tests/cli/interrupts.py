"""Ctrl-C in the middle of an answer."""

from collections.abc import Iterator
from itertools import islice

import pytest

import mistral_portable as mp
from mistral_portable.answers import Content, Delta


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Raise KeyboardInterrupt behind so many pieces of each answer; return a list that gets their texts."""
    deltas, pieces = mp.TextStreamer.deltas, list[str]()

    def interrupted(streamer: mp.TextStreamer) -> Iterator[Delta]:
        for delta in islice(deltas(streamer), count):
            assert isinstance(delta, Content)
            pieces.append(delta.text)
            yield delta
        raise KeyboardInterrupt

    monkeypatch.setattr(mp.TextStreamer, "deltas", interrupted)
    return pieces

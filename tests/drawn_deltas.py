"""Draws answers as their deltas, in any order that a parser may give, with the generation that they add up to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from mistral_portable.answers import (
    CallArguments,
    CallBegin,
    CallEnd,
    CallFailed,
    Content,
    Delta,
    Reasoning,
    join_deltas,
)
from mistral_portable.engine import Generation
from mistral_portable.engine.generation import Timings

__all__ = ["Drawn", "drawn_answers", "written"]

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
_OBJECTS = st.dictionaries(_TEXTS, st.none() | st.integers(-9, 9) | _TEXTS | st.lists(_TEXTS, max_size=2), max_size=3)


@dataclass(frozen=True)
class Drawn:
    """An answer. pieces: its deltas, as many at a time as a step of the stream brings."""

    pieces: Sequence[Sequence[Delta]]
    generation: Generation


@st.composite
def _cut(draw: st.DrawFn, text: str) -> list[str]:
    """The text in pieces, none empty."""
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=3)))
    bounds = [0, *(cut for cut in cuts if cut < len(text)), len(text)]
    return [text[begin:end] for begin, end in pairwise(bounds) if begin < end]


@st.composite
def drawn_answers(draw: st.DrawFn) -> Drawn:
    """Reasoning, content and calls, some of which fail and come out as content."""
    deltas: list[Delta] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from(["content", "reasoning", "call", "failed", "unnamed"]), max_size=6)):
        if kind == "content":
            deltas += [Content(text) for text in draw(st.lists(_TEXTS, min_size=1, max_size=3))]
        elif kind == "reasoning":
            deltas += [Reasoning(text) for text in draw(st.lists(_TEXTS, min_size=1, max_size=3))]
        elif kind == "unnamed":
            deltas += [CallFailed(None, "the call has no name"), Content(draw(_TEXTS))]
        else:
            text = json.dumps(draw(_OBJECTS), ensure_ascii=draw(st.booleans()))
            deltas.append(CallBegin(calls, f"call{calls:05}", draw(_TEXTS)))
            deltas += [CallArguments(calls, piece) for piece in draw(_cut(text if kind == "call" else text[:-1] + "x"))]
            if kind == "failed":
                deltas += [CallFailed(calls, "the arguments are cut off"), Content(text)]
            else:
                deltas.append(CallEnd(calls))
            calls += 1
    parts = join_deltas(deltas)
    cut = draw(st.booleans())
    stop = None if cut else draw(st.none() | _TEXTS)
    prompt = draw(st.integers(1, 99))
    timings = Timings(1.0, prompt, draw(st.integers(0, prompt - 1)), 0.25, 1, 0.5, 0)
    tokens = tuple(range(draw(st.integers(1, 9))))
    reason = "length" if cut else "stop"
    generation = Generation(
        parts.text, tokens, reason, None, timings, parts.reasoning, parts.tool_calls, parts.call_error, stop
    )
    size = draw(st.integers(1, 4))
    pieces = [deltas[begin : begin + size] for begin in range(0, len(deltas), size)]
    return Drawn(pieces, generation)


def written(writer: Any, answer: Drawn) -> list[dict[str, Any]]:
    """All objects that a writer makes of an answer."""
    first: list[dict[str, Any]] = writer.begin()
    middle = [one for piece in answer.pieces for one in writer.push(piece)]
    return [*first, *middle, *writer.end(answer.generation)]

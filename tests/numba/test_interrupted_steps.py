"""Ctrl-C at any line of a step's part in Python: the next step is as if the torn one had never begun."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
from mistral_portable_numba import cache, program, step
from mistral_portable_numba.program import SHRINK_AFTER
from numba_sessions import Session, text
from numpy.typing import NDArray

from mistral_portable.cache import Chunk

_FILES = {module.__file__ for module in (cache, program, step)}


@contextmanager
def interrupted(line: int) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt before the line with this number, counted as they run; yields the number that did run."""
    ran = [0]

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        # A tracer, unlike a signal, could come between the end of a `with` block and the release of its lock.
        if frame.f_code.co_filename not in _FILES or frame.f_code.co_name == "_in_turn":
            return None
        if event == "line":
            ran[0] += 1
            if ran[0] == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield ran
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)


def feed(session: Session, lanes: Sequence[int], texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """One step; what it does is undone if it fails."""
    plan = session.manager.plan(
        [Chunk(lane, tokens, range(len(tokens))) for lane, tokens in zip(lanes, texts, strict=True)]
    )
    try:
        return session.program.step(plan)["logits"]
    except BaseException:
        session.manager.undo(plan)
        raise


def test_a_torn_step_leaves_no_trace() -> None:
    """Steps that grow and shrink every array: more sequences, more pages, more tokens, and none of them for long."""
    clean, torn = Session(max_context=4000), Session(max_context=4000)
    sizes = [1, 3, 48, 1, 48, 2, 48, 48, *[1] * (SHRINK_AFTER + 2), 48, 1]
    lines, at = 0, 1
    sequences = (clean.manager.open(), torn.manager.open()), (clean.manager.open(), torn.manager.open())
    for number, size in enumerate(sizes):
        some = sequences if number % 3 else sequences[:1]
        tokens = [text(size, 2 * number + which) for which in range(len(some))]
        expected = feed(clean, [pair[0] for pair in some], tokens)
        lengths = [torn.manager.length(pair[1]) for pair in some]
        for _ in range(3):  # of a step's lines, each third one in turn
            with interrupted(at) as ran:
                feed(torn, [pair[1] for pair in some], tokens)
            at = at + 3 if ran[0] >= at else at % 3 + 1
            lines += ran[0]
            for pair, length in zip(some, lengths, strict=True):
                torn.manager.rollback(pair[1], length)
        np.testing.assert_array_equal(feed(torn, [pair[1] for pair in some], tokens), expected)
    assert lines > 1000

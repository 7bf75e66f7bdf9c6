"""load(stages=, ray=): stages in actors of a Ray cluster on this machine. One cluster, which takes seconds to start."""

from typing import Any

import pytest

import mistral_portable as mp
from mistral_portable.errors import ClosedError

ray = pytest.importorskip("ray", reason="Ray comes with the extra ray")
pytestmark = pytest.mark.usefixtures("alone")

PROMPTS = [list(range(first, first + 20)) for first in (5, 300, 400)]
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}


def test_actors_answer_and_one_that_is_lost_is_an_error() -> None:
    """The stages' threads are more than this machine has CPUs, perhaps."""
    with mp.load("tiny", backend="numba", window=8, threads=1) as whole:
        expected = [generation.tokens for generation in whole.generate(PROMPTS, **GREEDY)]
    try:
        with mp.load("tiny", backend="numba", window=8, threads=2, stages=2, ray="local") as model:
            assert [generation.tokens for generation in model.generate(PROMPTS, **GREEDY)] == expected
            stream = model.stream(PROMPTS[0], max_tokens=10_000, ignore_eos=True)
            next(stream)
            program: Any = model.program
            program._stages[1].close()
            with pytest.raises(ClosedError, match=r"a stage has ended .*: load the model again"):
                list(stream)
    finally:
        ray.shutdown()

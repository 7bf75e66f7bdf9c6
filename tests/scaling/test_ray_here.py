"""Stages and services on a Ray of this process: on one, which takes seconds to start."""

from typing import Any

import pytest

import mistral_portable as mp
from mistral_portable.errors import ClosedError, InputError

ray = pytest.importorskip("ray", reason="Ray comes with the extra ray")
pytestmark = pytest.mark.usefixtures("alone")

PROMPTS = [list(range(first, first + 20)) for first in (5, 300, 400)]
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}


def test_on_one_ray() -> None:
    try:
        actors_answer_and_one_that_is_lost_is_an_error()
        a_service_listens_where_others_do()
    finally:
        ray.shutdown()


def actors_answer_and_one_that_is_lost_is_an_error() -> None:
    """The stages' threads are more than this machine has CPUs, perhaps."""
    with mp.load("tiny", backend="numba", window=8, threads=1) as whole:
        expected = [generation.tokens for generation in whole.generate(PROMPTS, **GREEDY)]
    with mp.load("tiny", backend="numba", window=8, threads=2, stages=2, ray="local") as model:
        assert [generation.tokens for generation in model.generate(PROMPTS, **GREEDY)] == expected
        stream = model.stream(PROMPTS[0], max_tokens=10_000, ignore_eos=True)
        next(stream)
        program: Any = model.program
        program._stages[1].close()
        with pytest.raises(ClosedError, match=r"a stage has ended .*: load the model again"):
            list(stream)


def a_service_listens_where_others_do() -> None:
    """Ray Serve has one place on each machine, for all that it serves."""
    from mistral_portable.scaling.service import Replicas, run_service
    from mistral_portable.server import Settings

    ray.serve.start(http_options={"host": "127.0.0.1", "port": 0})
    with pytest.raises(InputError, match=r"port=8080: Ray Serve runs .*: give host=127\.0\.0\.1 port=0, or end it"):
        run_service({}, Settings("x"), Replicas(), address="auto", host="127.0.0.1", port=8080, ready=lambda: None)
    ray.serve.shutdown()

"""Threads that generate share steps; batches, their caches and other programs of the model run between these."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from documented_models import VALUES, pair

from mistral_portable.cache import StepPlan
from mistral_portable.engine.caller import Caller
from mistral_portable.errors import CapacityError, ClosedError

IDS = np.random.default_rng(0).integers(1, 30, (4, 6))
ENDLESS: dict[str, Any] = {"eos_token_id": 99, "pad_token_id": 0}
SECONDS = 60  # that no thread here takes, whatever else the machine does


def model(**changed: Any) -> Any:
    """A model in float64, so that rounding decides nothing."""
    return pair("MistralForCausalLM", {**VALUES, **changed}, 0, "float64")[0]


def before_steps(mine: Any, monkeypatch: pytest.MonkeyPatch, do: Callable[[StepPlan], None]) -> None:
    """Call `do` in front of each step of the program that generates, in the thread that runs it."""
    step = mine.decoder.program.step

    def first(plan: StepPlan, *inputs: Any) -> Any:
        do(plan)
        return step(plan, *inputs)

    monkeypatch.setattr(mine.decoder.program, "step", first)


def test_answers_of_several_threads_are_made_in_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = model()
    wanted = mine.generate(IDS, max_new_tokens=20, **ENDLESS)
    rows: list[int] = []
    came = threading.Barrier(2)
    submit = Caller.left

    def submitted(caller: Caller[Any]) -> bool:
        left = submit(caller)
        if threading.current_thread() is not threading.main_thread() and not rows:
            came.wait(SECONDS)
        return left

    def together(plan: StepPlan) -> None:
        if not rows:  # the main thread runs the first step: the other's request has come, or comes meanwhile
            came.wait(SECONDS)
        rows.append(len(plan.lanes))

    monkeypatch.setattr(Caller, "left", submitted)
    before_steps(mine, monkeypatch, together)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(mine.generate, IDS[:1], max_new_tokens=20, **ENDLESS)
        np.testing.assert_array_equal(mine.generate(IDS[1:2], max_new_tokens=20, **ENDLESS), wanted[1:2])
        np.testing.assert_array_equal(other.result(), wanted[:1])
    assert rows.count(2) >= 18


def test_batches_and_caches_that_move_between_programs_beside_answers() -> None:
    mine = model()
    wanted = mine.generate(IDS, max_new_tokens=30, **ENDLESS)
    exposures: tuple[dict[str, Any], ...] = ({}, {"output_hidden_states": True}, {"output_attentions": True})

    def read(number: int) -> tuple[np.ndarray, ...]:
        """Logits of two ids a call, with a cache that each call has in another program, and of a copy that goes on."""
        past: Any = None
        found = []
        for at in range(0, 6, 2):
            call = exposures[(number + at) % 3]
            output = mine(IDS[:, at : at + 2], past_key_values=past, **call)
            past = output.past_key_values
            found.append(output.logits)
        return (*found, mine(IDS, past_key_values=copy.copy(past)).logits, mine(IDS, use_cache=False).logits)

    expected = read(0)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(mine.generate, IDS, max_new_tokens=30, **ENDLESS) for _ in range(6)]
        batches = [pool.submit(read, number) for number in range(12)]
        for answer in answers:
            np.testing.assert_array_equal(answer.result(), wanted)
        for batch in batches:
            for found, logits in zip(batch.result(), expected, strict=True):
                np.testing.assert_allclose(found, logits, rtol=1e-6, atol=1e-6)
    assert mine.decoder.manager.lanes == ()


def test_caches_find_all_their_lanes_while_answers_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = model()
    many = np.repeat(IDS, 80, 0)
    wanted = mine.generate(many, max_new_tokens=4, **ENDLESS)
    runs, made = threading.Event(), threading.Event()

    def held(plan: StepPlan) -> None:
        runs.set()
        assert made.wait(SECONDS)

    before_steps(mine, monkeypatch, held)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(mine.generate, many, max_new_tokens=4, **ENDLESS)
        assert runs.wait(SECONDS)
        assert len(mine.decoder.manager.lanes) == 256  # of 320 rows
        cache = mine.decoder.new_cache(256)
        made.set()
        np.testing.assert_array_equal(answer.result(), wanted)
    assert sorted(cache.lanes) == sorted(mine.decoder.manager.lanes)


def test_closing_the_model_ends_answers_that_are_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = model(max_position_embeddings=100_000)
    runs = threading.Event()
    before_steps(mine, monkeypatch, lambda plan: runs.set())
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(mine.generate, IDS, max_new_tokens=90_000, **ENDLESS)
        assert runs.wait(SECONDS)
        mine.close()
        with pytest.raises(ClosedError, match="the model is closed"):
            answer.result(SECONDS)
    assert mine.decoder.manager.lanes == ()


@pytest.mark.parametrize("embeds", [False, True])
def test_where_memory_is_short_fewer_rows_run_at_a_time(embeds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that gave way is read again, its answer behind its prompt."""
    mine = model()
    prompt = {"inputs_embeds": np.cos(np.arange(4 * 6 * 12)).reshape(4, 6, 12)} if embeds else {"input_ids": IDS}
    wanted = mine.generate(**prompt, max_new_tokens=20, **ENDLESS)
    refused: list[int] = []
    again: list[int] = []

    def short(plan: StepPlan) -> None:
        if len(plan.lanes) > 2 and plan.positions.max() > 10:
            refused.append(len(plan.lanes))
            raise CapacityError("no memory for longer caches")
        again.extend(span.stop - span.start for span in plan.spans)

    before_steps(mine, monkeypatch, short)
    np.testing.assert_array_equal(mine.generate(**prompt, max_new_tokens=20, **ENDLESS), wanted)
    assert refused
    assert max(again) > 6
    assert mine.decoder.manager.lanes == ()

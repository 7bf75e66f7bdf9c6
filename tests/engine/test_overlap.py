"""A step begins before the last one's tokens are read, whoever joins, reads a prompt, waits, ends or is put aside."""

from collections.abc import Iterator
from typing import Any

import mistral_portable_mlx.program as mlx_executor
import mistral_portable_torch.program as torch_executor
import pytest

import mistral_portable as mp
from mistral_portable.boundary import GreedyProgram
from mistral_portable.cache import StepPlan
from mistral_portable.engine.request import Completion

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
PROMPTS = [[5 + number, *range(40 * number + 50, 40 * number + 55 + 9 * number)] for number in range(5)]


class Submitted(list[tuple[StepPlan, bool]]):
    """The plans of the steps that a program was given, and whether each was submitted after another one."""

    @property
    def waited_for(self) -> int:
        """The number of steps before which the loop had read all tokens."""
        return sum(not after for _, after in self)


@pytest.fixture(scope="module", params=["torch", "mlx"])
def model(request: pytest.FixtureRequest) -> Iterator[mp.Model]:
    with pytest.MonkeyPatch.context() as patch:  # on a CPU, as on a GPU
        patch.setattr(torch_executor, "TorchProgram", torch_executor.AsynchronousProgram)
        with mp.load("tiny", backend=request.param, dtype="float32", max_lanes=2) as model:
            assert isinstance(model.program, GreedyProgram)
            yield model


@pytest.fixture
def submitted(model: mp.Model, monkeypatch: pytest.MonkeyPatch) -> Submitted:
    program, found = model.program, Submitted()
    assert isinstance(program, GreedyProgram)
    submit, step = program.submit, program.step

    def watched(plan: StepPlan, *inputs: Any, after: Any = None) -> Any:
        found.append((plan, after is not None))
        return submit(plan, *inputs, after=after)

    def plain(plan: StepPlan, *inputs: Any) -> Any:
        found.append((plan, False))
        return step(plan, *inputs)

    monkeypatch.setattr(program, "submit", watched)
    monkeypatch.setattr(program, "step", plain)
    return found


def alone(model: mp.Model, prompt: list[int], count: int, **options: Any) -> tuple[int, ...]:
    tokens: tuple[int, ...] = model.generate(prompt, max_tokens=count, **GREEDY, **options).tokens
    return tokens


def test_who_joins_lets_nobody_wait(model: mp.Model, submitted: Submitted) -> None:
    """Five requests on two lanes: three wait, and whenever one ends, the other one goes on beside a prompt."""
    counts = [9, 14, 13, 12, 11]
    expected = [alone(model, prompt, count) for prompt, count in zip(PROMPTS, counts, strict=True)]
    model.manager.forget()
    submitted.clear()
    found = model.generate(PROMPTS, [mp.SamplingParams(max_tokens=count, **GREEDY) for count in counts])
    assert [generation.tokens for generation in found] == expected
    assert submitted.waited_for == 1
    joined = [plan for plan, _ in submitted if plan.sources is not None and len(plan.tokens) > 2]
    assert len(joined) == 3
    # Nobody takes part in vain who is sure to end.
    assert sum(len(plan.tokens) for plan, _ in submitted) == sum(map(len, PROMPTS)) + sum(counts) - len(counts)


def test_a_long_prompt_is_read_beside_one_that_decodes(model: mp.Model, submitted: Submitted) -> None:
    text = [5 + number % 900 for number in range(1300)]
    expected = alone(model, PROMPTS[0], 60), alone(model, text, 3)
    model.manager.forget()
    first = model.stream(PROMPTS[0], max_tokens=60, **GREEDY)
    next(first)
    submitted.clear()
    assert alone(model, text, 3) == expected[1]
    for _ in first:
        pass
    assert first.generation.tokens == expected[0]
    reading = [after for plan, after in submitted if len(plan.lanes) == 2 and len(plan.tokens) > 2]
    assert len(reading) > 1
    assert all(reading)


def test_who_ends_by_a_token_took_part_in_vain(model: mp.Model, submitted: Submitted) -> None:
    """One step more than it has tokens, as the next one begins before its end is known."""
    expected = alone(model, PROMPTS[1], 30)
    end = expected[7]
    count = expected.index(end) + 1
    model.manager.forget()
    submitted.clear()
    params = mp.SamplingParams(max_tokens=30, **GREEDY)
    completion = Completion(PROMPTS[1], params, ends={end}, max_context=100)
    for request in model.loop.run([completion]):
        request.next()
    assert tuple(completion.tokens[len(PROMPTS[1]) :]) == expected[:count]
    assert len(submitted) == count + 1
    assert model.manager.lanes == ()
    submitted.clear()
    alone(model, PROMPTS[0], 3)
    assert submitted.waited_for == 1  # nobody waits for the step in vain


def test_an_urgent_request_takes_the_lane_of_one_whose_step_is_under_way(model: mp.Model, submitted: Submitted) -> None:
    expected = [alone(model, prompt, 20) for prompt in PROMPTS[:3]]
    streams = [model.stream(prompt, max_tokens=20, **GREEDY) for prompt in PROMPTS[:2]]
    for stream in streams:
        next(stream)
    submitted.clear()
    assert alone(model, PROMPTS[2], 20, priority=1) == expected[2]
    for stream in streams:
        for _ in stream:
            pass
    assert [stream.generation.tokens for stream in streams] == expected[:2]
    assert submitted.waited_for == 0


def test_a_sampled_request_waits_for_the_host(model: mp.Model, submitted: Submitted) -> None:
    options: dict[str, Any] = {"max_tokens": 15, "ignore_eos": True, "seed": 3}
    expected = alone(model, PROMPTS[0], 25), model.generate(PROMPTS[1], **options).tokens
    submitted.clear()
    params = [mp.SamplingParams(max_tokens=25, **GREEDY), mp.SamplingParams(**options)]
    found = model.generate(PROMPTS[:2], params)
    assert tuple(generation.tokens for generation in found) == expected
    assert submitted.waited_for == 16  # those with both; then the first one goes on by itself


def test_a_device_that_fails_ends_those_in_both_steps_and_the_loop_goes_on(
    model: mp.Model, submitted: Submitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One decodes in the step that fails; the other one reads its prompt in the step that was submitted after it."""
    expected = alone(model, PROMPTS[0], 20)
    first, second = (model.stream(prompt, max_tokens=20, **GREEDY) for prompt in PROMPTS[:2])
    next(first)

    def fails(step: Any) -> Any:
        patch.undo()
        raise RuntimeError("the device fell over")

    with monkeypatch.context() as patch:
        for kind in (torch_executor.TorchStep, mlx_executor.MLXStep):
            patch.setattr(kind, "tokens", fails)
        for stream in (second, first):
            with pytest.raises(RuntimeError, match="fell over"):
                for _ in stream:
                    pass
    assert first.generation.tokens == expected[: len(first.generation.tokens)]
    assert model.manager.lanes == ()
    assert alone(model, PROMPTS[0], 20) == expected

"""load(stages=): the answers of the whole model, whatever happens meanwhile; mostly with stages in this process."""

import multiprocessing
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from late_stages import LateStage

import mistral_portable as mp
from mistral_portable.errors import CapacityError, ClosedError, InputError
from mistral_portable.staging import Made
from mistral_portable.staging.processes import ProcessStage

PROMPTS = [
    list(range(first, first + length)) for first, length in [(5, 100), (5, 80), (300, 3), (400, 60), (7, 1), (9, 9)]
]
SAMPLED: list[mp.SamplingParams] = [
    mp.SamplingParams(max_tokens=12 + index, temperature=index % 2, seed=index, ignore_eos=True) for index in range(6)
]


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, ...]]:
    """Answers of the whole model, each prompt alone."""
    with mp.load("tiny", backend="numba", window=8, threads=1, draft="off") as model:
        return [model.generate(*call).tokens for call in zip(PROMPTS, SAMPLED, strict=True)]


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[LateStage]:
    """The stages of the models that are loaded from now on."""
    made: list[LateStage] = []

    def make(*arguments: Any) -> LateStage:
        made.append(LateStage(*arguments))
        return made[-1]

    monkeypatch.setattr(import_module("mistral_portable.engine.stages"), "ProcessStage", make)
    return made


def staged(stages: int = 2, **options: Any) -> mp.Model:
    return mp.load("tiny", **{"backend": "numba", "window": 8, "threads": 1, "stages": stages, **options})


def answers(model: mp.Model) -> list[tuple[int, ...]]:
    return [generation.tokens for generation in model.generate(PROMPTS, SAMPLED)]


@pytest.mark.parametrize(("stages", "threads"), [(1, 1), (2, 1), (3, 1), (4, 1), (3, None)])
def test_answers_are_those_of_the_whole(
    late: list[LateStage], expected: list[tuple[int, ...]], stages: int, threads: int | None
) -> None:
    """Prompts of several chunks of the window; the last stages see the tokens of 6 sequences that are under way.

    Without a number of threads the stages take turns.
    """
    with staged(stages, draft="off", threads=threads) as model:
        most = 0

        def count(number: int) -> None:
            nonlocal most
            most = max(most, sum(call.method == "step" for call in late[0].calls))

        late[0].before_step = count
        assert [stage.name for stage in late][:1] == [f"stage 1 of {stages} (layers 0 to {4 // stages - 1})"]
        assert answers(model) == expected
        assert most == (stages if threads else 1)  # as many steps have begun
        assert model.manager.lanes == ()


def test_drafts_are_tried_in_stages(late: list[LateStage]) -> None:
    text = [5, 6, 7, 8, 9] * 12
    with mp.load("tiny", backend="numba", threads=1, draft="off") as whole:
        expected = whole.generate([text, text[1:]], max_tokens=60, temperature=0, ignore_eos=True)
    with staged(window="config", draft="suffix") as model:
        found = model.generate([text, text[1:]], max_tokens=60, temperature=0, ignore_eos=True)
    assert [some.tokens for some in found] == [some.tokens for some in expected]


def test_logits_and_embeddings(late: list[LateStage], tiny: mp.Model) -> None:
    texts = [PROMPTS[0], PROMPTS[3]]
    whole = mp.load("tiny", backend="reference", embeddings=True)
    with whole, staged(3, backend="reference", window="config", embeddings=True) as model:
        for text in texts:
            logits = model.logits(text)
            assert logits.shape == (len(text), model.config.vocab_size)
            np.testing.assert_array_equal(logits, whole.logits(text))
            np.testing.assert_array_equal(model.embed([text]), whole.embed([text]))


def test_sessions_move_between_stages_and_the_whole(late: list[LateStage], tmp_path: Path) -> None:
    greedy: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    with staged(3) as model, mp.load("tiny", backend="numba", window=8, threads=1) as whole:
        first = model.generate(PROMPTS[0], **greedy).tokens
        model.save_session(tmp_path / "text")
        assert whole.load_session(tmp_path / "text") > 64
        longer = [*PROMPTS[0], *first, 11, 12]
        assert whole.generate(longer, **greedy).tokens == model.generate(longer, **greedy).tokens


@contextmanager
def short_of_memory(stage: LateStage, steps: range) -> Iterator[None]:
    def fail(number: int) -> None:
        if number in steps:
            raise CapacityError("no memory is left")

    stage.before_step = fail
    yield
    stage.before_step = lambda number: None


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("first", range(1, 12, 2))
def test_memory_short_in_one_stage(
    late: list[LateStage], expected: list[tuple[int, ...]], stage: int, first: int
) -> None:
    """The plan is undone everywhere; fewer sequences at a time go on, with the same answers."""
    with staged(3, draft="off") as model:
        with short_of_memory(late[stage], range(first, first + 2)):
            assert answers(model) == expected
        assert model.manager.lanes == ()


def test_one_gives_way_while_steps_are_under_way(late: list[LateStage]) -> None:
    """Answers grow beyond `cache_bytes`, so that lanes are put aside, while another step with them may be under way."""
    long = [mp.SamplingParams(max_tokens=150, temperature=i % 2, seed=i, ignore_eos=True) for i in range(len(PROMPTS))]
    options: dict[str, Any] = {"backend": "numba", "threads": 1, "draft": "off"}
    with mp.load("tiny", **options) as whole:
        expected = [generation.tokens for generation in whole.generate(PROMPTS, long)]
    with (
        mp.load("tiny", stages=2, cache_bytes=512 * 1024, **options) as model,
        ThreadPoolExecutor(len(PROMPTS)) as pool,
    ):
        found = list(pool.map(lambda call: model.generate(*call).tokens, zip(PROMPTS, long, strict=True)))
    assert found == expected


def test_no_memory_for_one_sequence_is_its_error(late: list[LateStage], expected: list[tuple[int, ...]]) -> None:
    with staged(2, draft="off") as model:
        with short_of_memory(late[1], range(1, 1000)), pytest.raises(CapacityError, match="no memory is left"):
            model.generate(PROMPTS[0], SAMPLED[0])
        assert answers(model) == expected


def test_streams_that_are_left_leave_others_alone(late: list[LateStage], expected: list[tuple[int, ...]]) -> None:
    """Several threads take tokens from streams and leave half of them at any point."""
    with staged(3, draft="off") as model:

        def read(seed: int) -> None:
            draw = random.Random(seed)
            for _ in range(5):
                index = draw.randrange(len(PROMPTS))
                stream = model.stream(PROMPTS[index], SAMPLED[index])
                leaves = draw.choice([None, draw.randint(0, 12)])
                for count, _ in enumerate(stream):
                    if count == leaves:
                        break
                found = stream.generation.tokens
                assert found == expected[index][: len(found)]
                assert leaves is not None or found == expected[index]
                stream.close()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, range(4)))
        assert answers(model) == expected
        assert model.manager.lanes == ()


def test_what_does_not_go_together_is_refused() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"stages": 0}, "stages=0 must be an integer from 1 on"),
        ({"stages": True}, "stages=True must be"),
        ({"stages": 5}, "stages=5 must be at most 4, the number of layers"),
        ({"stages": 2, "tensor_parallel": 2, "backend": "torch"}, "stages and tensor_parallel do not go together"),
        ({"ray": "local"}, "ray='local' is where stages run: give stages"),
    ]
    for options, said in refused:
        with pytest.raises(InputError, match=said):
            mp.load("tiny", **{"backend": "numba", **options})


def compile_for_ever(place: Path) -> Made:
    """Stands for a stage that compiles its kernels, in a folder that it removes."""
    with TemporaryDirectory(dir=place):
        while True:
            time.sleep(0.01)


def test_a_process_that_is_ended_amid_its_start_leaves_nothing(tmp_path: Path) -> None:
    stage = ProcessStage("stage 1 of 1", partial(compile_for_ever, tmp_path))
    started = stage.submit("start")
    end = time.monotonic() + 60
    while not list(tmp_path.iterdir()):
        assert time.monotonic() < end, "the stage has not begun"
        time.sleep(0.01)
    stage.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ClosedError, match="the model is closed: load it again"):
        started.result()
    with pytest.raises(ClosedError, match="the model is closed: load it again"):
        stage.submit("memory")


def test_processes_answer_and_one_that_is_killed_is_one_error_for_all(expected: list[tuple[int, ...]]) -> None:
    """Real processes, which are gone afterwards."""
    with staged(2, draft="off") as model:
        assert answers(model) == expected
        processes = multiprocessing.active_children()
        assert len(processes) == 2
        begun = threading.Barrier(4)

        def endless(prompt: list[int]) -> str:
            stream = model.stream(prompt, max_tokens=100_000, ignore_eos=True)
            next(stream)
            begun.wait()
            with pytest.raises(ClosedError) as raised:
                list(stream)
            return str(raised.value)

        with ThreadPoolExecutor(3) as pool:
            errors = pool.map(endless, PROMPTS[:3])
            begun.wait()
            victim = next(process for process in processes if "stage 2" in process.name)
            assert victim.pid is not None
            os.kill(victim.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            said = rf"stage 2 of 2 \(layers 2 to 3\) has ended \(process {victim.pid}, exit code -?\d+\).*load the mod"
            for error in errors:
                assert re.match(said, error)
        with pytest.raises(ClosedError, match=said):
            model.generate(PROMPTS[0], max_tokens=1)
    for process in processes:
        process.join(60)
        assert not process.is_alive()

"""Nothing is read twice: prompts that begin alike, chat turns, requests that were put aside."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import mistral_portable as mp
from mistral_portable.boundary.registry import candidates
from mistral_portable.cache import StepPlan
from mistral_portable.config import Window
from mistral_portable.errors import CapacityError, InputError

# Without drafts, which make steps of more tokens: here they are counted.
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "draft": "off"}
BACKENDS = [found.name for found in candidates() if found.availability.score > 0]
CHAT, OTHER = list(range(5, 305)), list(range(400, 700))


@pytest.mark.parametrize(("backend", "window"), [*((name, 64) for name in BACKENDS), ("numba", 7), ("numba", None)])
def test_a_chat_turn_reads_what_is_new(backend: str, window: Window, counted: list[int]) -> None:
    """Also behind a window that has moved on, and after another chat has been there."""
    with mp.load("tiny", backend=backend, window=window, max_lanes=2, cache_bytes=0) as cold:
        first = cold.generate(CHAT, **GREEDY)
        history = [*CHAT, *first.tokens, *range(30, 60)]
        second = cold.generate(history, **GREEDY)
        assert first.timings.cached_tokens == second.timings.cached_tokens == 0
    with mp.load("tiny", backend=backend, window=window, max_lanes=2) as model:
        assert model.generate(CHAT, **GREEDY).tokens == first.tokens
        model.generate(OTHER, **GREEDY)
        counted.clear()
        found = model.generate(history, **GREEDY)
        assert found.tokens == second.tokens
        assert found.timings.cached_tokens == len(CHAT) + 11  # the last token of the answer was never read
        assert counted == [31, *[1] * 11]
        assert found.timings.prefill_tokens == len(history)


@pytest.mark.parametrize(("backend", "count"), [("numba", 8), ("mlx", 3)])
def test_requests_that_begin_alike_read_that_once(backend: str, count: int, counted: list[int]) -> None:
    prompts = [[*CHAT, 700 + number] for number in range(count)]
    with mp.load("tiny", backend=backend, cache_bytes=0) as cold:
        expected = [cold.generate(prompt, **GREEDY).tokens for prompt in prompts]
    with mp.load("tiny", backend=backend) as model:
        counted.clear()
        found = model.generate(prompts, **GREEDY)
        assert [generation.tokens for generation in found] == expected
        assert sum(counted) == len(CHAT) + count + count * 11
        assert sorted(generation.timings.cached_tokens for generation in found) == [0, *[len(CHAT)] * (count - 1)]
        assert model.manager.lanes == ()


@pytest.mark.parametrize("several", [False, True])
def test_n_answers_to_a_prompt_that_is_read_once(several: bool, counted: list[int]) -> None:
    """Each with a seed of its own; a list for one prompt, a list of lists for several."""
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 1.5, "ignore_eos": True, "draft": "off"}
    with mp.load("tiny", backend="numba") as model:
        expected = [model.generate(CHAT, seed=3 + number, **options).tokens for number in range(4)]
        assert len(set(expected)) > 1
    with mp.load("tiny", backend="numba") as model:
        counted.clear()
        if several:
            ((*found,),) = model.generate([CHAT], n=4, seed=3, **options)
        else:
            found = model.generate(CHAT, n=4, seed=3, **options)
        assert [generation.tokens for generation in found] == expected
        assert sum(counted) == len(CHAT) + 3 + 4 * 4
        assert len({generation.tokens for generation in model.generate(CHAT, n=4, **options)}) > 1
        refused: list[Any] = [0, -1, 1.5, True, "2"]
        for wrong in refused:
            with pytest.raises(InputError, match=r"n=.* must be an integer from 1 on"):
                model.generate(CHAT, n=wrong)


def test_a_whole_prompt_is_asked_again(counted: list[int]) -> None:
    """Its last token is read, as its logits are wanted."""
    with mp.load("tiny", backend="numba") as model:
        model.generate(CHAT, **GREEDY)
        counted.clear()
        assert model.generate(CHAT, max_tokens=1).timings.cached_tokens == len(CHAT) - 1
        assert counted == [1]


def test_nobody_waits_for_a_prompt_of_a_less_urgent_one(counted: list[int]) -> None:
    with mp.load("tiny", backend="numba", max_lanes=2) as model:
        found = model.generate([CHAT] * 2, max_tokens=2), model.stream(CHAT, priority=1, max_tokens=2)
        assert len(list(found[1])) >= 0
        assert found[1].generation.timings.cached_tokens == len(CHAT) - 1


def test_one_that_was_put_aside_goes_on_where_it_was(counted: list[int]) -> None:
    with mp.load("tiny", backend="numba", max_lanes=1) as model:
        expected = model.generate(CHAT, max_tokens=40, temperature=0, ignore_eos=True).tokens
    with mp.load("tiny", backend="numba", max_lanes=1) as model:
        stream = model.stream(CHAT, max_tokens=40, temperature=0, ignore_eos=True, draft="off")
        next(stream)
        counted.clear()
        model.generate(OTHER, priority=1, **GREEDY)
        for _ in stream:
            pass
        assert stream.generation.tokens == expected
        assert stream.generation.timings.cached_tokens == 0
        assert sum(counted) <= len(OTHER) + 12 + 40


def test_scores_are_not_kept(counted: list[int]) -> None:
    with mp.load("tiny", backend="numba") as model:
        model.logits(CHAT)
        assert model.manager.bytes_in_use == 0
        assert model.generate(CHAT, **GREEDY).timings.cached_tokens == 0
        counted.clear()
        part = next(model.logits_parts(CHAT, first=290))
        assert (len(part), counted) == (10, [10])


def test_another_salt_finds_nothing() -> None:
    with mp.load("tiny", backend="numba") as model:
        model.generate(CHAT, cache_salt="a", **GREEDY)
        assert model.generate(CHAT, cache_salt="b", **GREEDY).timings.cached_tokens == 0
        assert model.generate(CHAT, **GREEDY).timings.cached_tokens == 0
        assert model.generate(CHAT, cache_salt="a", **GREEDY).timings.cached_tokens == len(CHAT) - 1
        with pytest.raises(InputError, match="cache_salt=1 must be a string"):
            model.generate(CHAT, cache_salt=1)


@pytest.mark.parametrize(("backend", "slots"), [("numba", 11 * 64), ("mlx", 512)])
def test_one_limit_for_lanes_and_what_is_kept(backend: str, slots: int) -> None:
    """Requests wait where their prompts do not fit beside each other, and what is kept gives way: each takes 311 slots,
    in pages of 64 six pages."""
    with mp.load("tiny", backend=backend) as model:
        expected = [model.generate(prompt, **GREEDY).tokens for prompt in (CHAT, OTHER)]
        room = slots * model.program.slot_bytes(0)
    with mp.load("tiny", backend=backend, cache_bytes=room) as model:
        for _ in range(4):
            with ThreadPoolExecutor(2) as pool:
                found = pool.map(lambda prompt: model.generate(prompt, **GREEDY).tokens, (CHAT, OTHER))
                assert list(found) == expected
            assert model.manager.bytes_in_use <= room
        assert model.manager.lanes == ()


def test_a_prompt_that_never_fits_is_refused_in_one_line() -> None:
    with mp.load("tiny", backend="numba", cache_bytes=100_000) as model:
        with pytest.raises(CapacityError, match=r"cache_bytes=100000 allows 0\.1 MiB: raise it"):
            model.generate(CHAT, max_tokens=1)
        assert model.generate(CHAT[:20], max_tokens=2, ignore_eos=True).tokens
        with pytest.raises(CapacityError, match="cache_bytes=100000"):
            model.generate(CHAT[:20], max_tokens=300, ignore_eos=True)
        assert model.manager.lanes == ()


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "2G"])
def test_a_bad_limit_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"cache_bytes=.* must be an integer from 0 on"):
        mp.load("tiny", cache_bytes=wrong)


def test_what_is_kept_gives_way_where_the_executor_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with mp.load("tiny", backend="numba") as model:
        expected = model.generate(OTHER, **GREEDY).tokens
        model.generate(CHAT, **GREEDY)
        step = model.program.step

        def short(plan: StepPlan, inputs: Any) -> Any:
            if plan.groups[0].page_count > 6:
                raise CapacityError("no memory for more pages")
            return step(plan, inputs)

        monkeypatch.setattr(model.program, "step", short)
        other = [1, *OTHER]
        assert len(model.generate(other, **GREEDY).tokens) == 12
        assert model.generate(OTHER, **GREEDY).tokens == expected


def test_memory_is_constant_whatever_comes_and_goes() -> None:
    """Requests of all lengths, some left halfway, some that begin as earlier ones did: 10,000 by hand, 250 here."""
    draw, texts = random.Random(0), list[list[int]]()
    with mp.load("tiny", backend="numba", max_lanes=3, cache_bytes=4 << 20) as model:
        pools = 0
        for number in range(250):
            begin = draw.choice(texts)[: draw.randint(1, 300)] if texts and draw.random() < 0.6 else []
            prompt = [*begin, *(draw.randrange(5, 1000) for _ in range(draw.randint(1, 150)))][:500]
            stream = model.stream(prompt, max_tokens=draw.randint(1, 12), ignore_eos=True, seed=number)
            for _ in range(draw.randint(0, 15)):
                next(stream, None)
            stream.close()
            texts = [*texts[-30:], [*prompt, *stream.generation.tokens]]
            assert model.manager.lanes == ()
            assert model.manager.bytes_in_use <= 4 << 20
            if number == 100:
                pools = model.program.cache_bytes
        assert model.manager.bytes_in_use > 3 << 20  # it is full
        assert model.program.cache_bytes == pools <= 1.5 * (4 << 20)

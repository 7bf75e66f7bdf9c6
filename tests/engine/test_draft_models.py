"""A draft model saves steps and changes nothing, however well or badly it guesses, and whatever befalls it."""

import json
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import mistral_portable as mp
from mistral_portable.boundary.registry import candidates
from mistral_portable.config import Window
from mistral_portable.drafts import StepCosts
from mistral_portable.engine.drafting import MOST_DRAFTED
from mistral_portable.engine.model_drafting import ModelDrafting
from mistral_portable.errors import CapacityError, CheckpointError, InputError
from mistral_portable.weights import open_checkpoint

TINY = open_checkpoint("tiny").path
BACKENDS = [found.name for found in candidates() if found.availability.score > 0]
OPTIONS: dict[str, Any] = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}
STORY = "Once upon a time"

Drafts = Callable[[float, Window], Path]


@pytest.fixture(scope="session")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> Drafts:
    """Makes the embedded model with noise on its weights, by which it guesses worse, and with another window."""

    @cache
    def make(noise: float, window: Window) -> Path:
        folder = tmp_path_factory.mktemp("draft") / f"{noise}-{window}"
        shutil.copytree(TINY, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "sliding_window": window}))
        random, weights = np.random.default_rng(0), dict[str, NDArray[np.float32]]()
        for name, tensor in open_checkpoint("tiny").tensors.items():
            noised = tensor.numpy() + noise * random.normal(size=tensor.shape)
            weights[name] = noised.astype(np.float32)
        save_file(weights, folder / "model.safetensors")
        return folder

    return make


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let drafts be as long as may be, whatever they cost and whether they were right."""
    lengths = lambda chances, seconds: [len(some) for some in chances]  # noqa: E731  # one line says it
    monkeypatch.setattr(import_module("mistral_portable.engine.model_drafting"), "best_lengths", lengths)


@cache
def loaded(draft: Path, window: Window) -> mp.Model:
    return mp.load("tiny", backend="numba", window=window, max_lanes=3, max_context=140, draft=draft)


def by_text(tokens: Sequence[int], logits: NDArray[np.float32], /) -> NDArray[np.float32]:
    """A rule of the caller's own, which the draft model does not know."""
    logits[sum(tokens) % logits.size] += np.float32(9)
    return logits


windows = st.one_of(st.integers(1, 8), st.none())
prompts = st.lists(st.integers(5, 1000), min_size=1, max_size=40)
rules = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.0, 2.0]),
        "seed": st.integers(0, 99),
        "max_tokens": st.integers(1, 24),
    },
    optional={
        "repetition_penalty": st.sampled_from([1.3]),
        "frequency_penalty": st.sampled_from([0.8]),
        "logit_bias": st.dictionaries(st.integers(5, 1000), st.sampled_from([-np.inf, 5.0]), max_size=3),
        "logprobs": st.integers(0, 2),
        "top_k": st.sampled_from([3, 40]),
        "ignore_eos": st.booleans(),
        "logits_processors": st.just((by_text,)),
        "no_repeat_ngram_size": st.just(2),
        "xtc_probability": st.just(0.5),
        "dry_multiplier": st.just(0.8),
        "mirostat": st.just(2),
    },
)


@settings(max_examples=20)  # each makes up to 6 answers, and may load two models
@given(
    window=windows,
    draft_window=st.sampled_from([1, 3, 8, None]),
    noise=st.sampled_from([0.0, 0.02, 1.0]),
    several=st.lists(st.tuples(prompts, rules), min_size=1, max_size=3),
)
@pytest.mark.usefixtures("eager")
def test_answers_are_those_without(
    drafts: Drafts, window: Window, draft_window: Window, noise: float, several: list[tuple[list[int], dict[str, Any]]]
) -> None:
    model = loaded(drafts(noise, draft_window), window)
    asked = [prompt for prompt, _ in several]
    params = [mp.SamplingParams(**options) for _, options in several]
    expected = model.generate(asked, params, draft="off")
    found = model.generate(asked, params)
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.logprobs, one.text) == (other.tokens, other.logprobs, other.text)
        assert 0 <= one.timings.accepted_tokens <= one.timings.drafted_tokens
        assert one.timings.drafted_tokens > 0 or len(one.tokens) <= 2  # the last token is no step's
    assert model.manager.lanes == ()


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_agrees_saves_steps(drafts: Drafts, temperature: float, counted: list[int]) -> None:
    """Also where tokens are drawn: it draws with the same numbers. A window of 8: behind 2W, too."""
    for window in (8, None):
        with mp.load("tiny", window=window, backend="numba", draft=drafts(0.0, window)) as model:
            options = {**OPTIONS, "temperature": temperature, "seed": 5}
            expected = model.generate(STORY, draft="off", **options)
            found = model.generate(STORY, **options)
            assert found.tokens == expected.tokens
            assert found.timings.accepted_tokens == found.timings.drafted_tokens >= 20


@pytest.mark.usefixtures("eager")
def test_a_grammar_holds_for_the_draft_too(drafts: Drafts) -> None:
    """Tokens that it forces are drafted without a step, and those that it forbids are not."""
    model = loaded(drafts(0.0, None), None)
    schema = {"type": "object", "properties": {"name": {"enum": ["red ball", "red car"]}}, "required": ["name"]}
    for seed in range(5):
        options: dict[str, Any] = {"schema": schema, "max_tokens": 40, "temperature": 1.0, "seed": seed}
        expected = model.generate(STORY, draft="off", **options)
        found = model.generate(STORY, **options)
        assert (found.tokens, found.text) == (expected.tokens, expected.text)
        # One that ends the text is right, too, but nobody reads it.
        assert found.timings.accepted_tokens >= found.timings.drafted_tokens - 1 > 0


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_backend_drafts_for_any(drafts: Drafts, backend: str) -> None:
    """Where both round otherwise, one of many tokens may be another."""
    for target, drafter in [(backend, "numba"), ("numba", backend)]:
        with mp.load(drafts(0.0, None), backend=drafter) as draft:
            with mp.load("tiny", window=None, backend=target, draft=draft) as model:
                found = model.generate(STORY, **OPTIONS)
                assert found.timings.accepted_tokens > 10
                assert found.text == model.generate(STORY, draft="off", **OPTIONS).text
            assert draft.manager.lanes == ()
            draft.generate(STORY, **OPTIONS)  # it was not closed with the other one


def test_a_model_that_is_as_slow_is_not_asked(drafts: Drafts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCosts, "seconds", lambda self: [float(tokens) for tokens in range(65)])
    with mp.load("tiny", backend="numba", window=None, draft=drafts(0.0, None)) as model:
        assert model.generate(STORY, **OPTIONS).timings.drafted_tokens == 0


def test_a_model_that_is_always_wrong_is_soon_left_alone(drafts: Drafts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its steps take little time: those of the other one are made slow here."""
    options = {**OPTIONS, "temperature": 1.0, "max_tokens": 100}
    with mp.load(drafts(1.0, None), backend="numba") as draft, mp.load("tiny", backend="numba", draft=draft) as model:
        asked, taking = list[int](), list[int]()
        for one, sizes, seconds in ((draft, asked, 0.0), (model, taking, 0.004)):
            monkeypatch.setattr(one.program, "step", noted(one.program.step, sizes, seconds))
        asked_by_answer = list[int]()
        for seed in range(2):  # 200 tokens: behind 256 it is asked again
            asked.clear()
            taking.clear()
            model.generate(STORY, seed=seed, **options)
            asked_by_answer.append(len(asked))
        assert asked_by_answer[0] > 0
        assert asked_by_answer[1] < 20  # of 100, if it were asked about each token
        assert len(taking) > 70  # it tries what the text repeats, and little else


def noted(step: Callable[..., Any], sizes: list[int], seconds: float) -> Callable[..., Any]:
    """Make a step that notes its tokens and takes so much longer: a large model's."""

    def slow(plan: Any, *arguments: Any) -> Any:
        sizes.append(len(plan.tokens))
        time.sleep(seconds)
        return step(plan, *arguments)

    return slow


def test_a_long_prompt_is_read_by_both(drafts: Drafts, counted: list[int]) -> None:
    """In steps of 512 tokens; one whose beginning is known is not read again by either."""
    prompt = [*range(5, 905)] * 2
    with mp.load("tiny", backend="numba", draft=drafts(0.0, 64)) as model:
        expected = model.generate(prompt, draft="off", **OPTIONS)
        counted.clear()
        assert model.generate([*prompt, 7], **OPTIONS).tokens
        assert 1500 < sum(size for size in counted if size > 64) <= 1801 + 24
        counted.clear()
        assert model.generate(prompt, **OPTIONS).tokens == expected.tokens
        assert sum(size for size in counted if size > 64) <= 256


@pytest.mark.usefixtures("eager")
def test_where_it_fails_answers_go_on_without(drafts: Drafts, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning says so, and no lane stays open."""
    with mp.load(drafts(0.0, None), backend="numba", max_lanes=3) as draft:
        model = mp.load("tiny", backend="numba", window=None, draft=draft)
        expected = model.generate(STORY, draft="off", **OPTIONS).tokens
        step = draft.program.step

        def failing(plan: Any, *arguments: Any) -> Any:
            if plan.positions[-1] >= 12:
                raise CapacityError("no memory for the draft: take fewer")
            return step(plan, *arguments)

        monkeypatch.setattr(draft.program, "step", failing)
        with pytest.warns(UserWarning, match="the draft model: no memory .* going on without it"):
            assert model.generate(STORY, **OPTIONS).tokens == expected
        assert draft.manager.lanes == ()
        monkeypatch.setattr(draft.program, "step", step)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with draft.lane(), draft.lane():
                assert model.generate(STORY, **OPTIONS).tokens == expected
            draft.close()
            assert model.generate(STORY, **OPTIONS).tokens == expected
        model.close()


@pytest.mark.usefixtures("eager")
def test_what_a_step_of_the_draft_model_has_not_read_is_not_kept(
    drafts: Drafts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes when its plan is made and its step has not run: its own answers are those of a fresh model."""
    prompt = [*range(5, 205)]
    with mp.load(drafts(0.02, None), backend="numba") as fresh:
        expected = fresh.generate(prompt, **OPTIONS).tokens
    for at in range(4):
        with (
            mp.load(drafts(0.02, None), backend="numba") as draft,
            mp.load("tiny", backend="numba", window=None, draft=draft) as model,
            monkeypatch.context() as patch,
        ):
            plan, plans = draft.manager.plan, list[int]()

            def interrupted(chunks: Any, plan: Any = plan, plans: list[int] = plans, at: int = at) -> Any:
                plans.append(len(chunks))
                made = plan(chunks)
                if len(plans) == at + 1:
                    raise KeyboardInterrupt
                return made

            patch.setattr(draft.manager, "plan", interrupted)
            with pytest.raises(KeyboardInterrupt):
                model.generate(prompt, **OPTIONS)
            patch.undo()
            assert model.generate(prompt, **OPTIONS).tokens == model.generate(prompt, draft="off", **OPTIONS).tokens
            assert draft.generate(prompt, draft="off", **OPTIONS).tokens == expected
            assert draft.manager.lanes == ()


@pytest.mark.usefixtures("eager")
def test_a_draft_model_that_makes_no_numbers_leaves_what_repeats(
    drafts: Drafts, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeats = [*range(5, 45)] * 3
    with mp.load(drafts(0.0, None), backend="numba") as draft, mp.load("tiny", backend="numba", draft=draft) as model:
        step = draft.program.step

        def broken(plan: Any, *arguments: Any) -> Any:
            return {name: np.full_like(rows, np.nan) for name, rows in step(plan, *arguments).items()}

        monkeypatch.setattr(draft.program, "step", broken)
        with pytest.warns(UserWarning, match="the draft model: the logit of token"):
            found = model.generate(repeats, max_tokens=100, temperature=0, ignore_eos=True)
        expected = model.generate(repeats, max_tokens=100, temperature=0, ignore_eos=True, draft="off")
        assert found.tokens == expected.tokens
        assert found.timings.accepted_tokens > 30


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("error")  # where the draft model fails, it warns
def test_what_is_more_than_a_step_reads_is_read_in_several(drafts: Drafts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelDrafting, "read", lambda *_, **__: None)  # it has seen nothing of the prompt
    with mp.load(drafts(0.0, None), backend="numba") as draft, mp.load("tiny", backend="numba", draft=draft) as model:
        prompt = [5 + i % 900 for i in range(draft.manager.spec.max_chunk + 8)]
        found = model.generate(prompt, max_tokens=60, temperature=0, ignore_eos=True)
        assert found.timings.drafted_tokens > 0


@pytest.mark.usefixtures("eager")
def test_others_do_not_wait_for_what_the_draft_model_reads(drafts: Drafts, monkeypatch: pytest.MonkeyPatch) -> None:
    with mp.load(drafts(0.0, None), backend="numba") as draft, mp.load("tiny", backend="numba", draft=draft) as model:
        sizes = list[int]()
        monkeypatch.setattr(draft.program, "step", noted(draft.program.step, sizes, 0))
        prompts = [[5, 6, 7], [*range(5, 1005)] * 2]
        found = model.generate(prompts, max_tokens=60, temperature=0, ignore_eos=True)
        assert 0 < max(sizes) <= 64 + 2 * (1 + MOST_DRAFTED)
        assert sum(sizes) > 2000
        expected = model.generate(prompts, max_tokens=60, temperature=0, ignore_eos=True, draft="off")
        assert [one.tokens for one in found] == [one.tokens for one in expected]


@pytest.mark.usefixtures("eager")
def test_streams_that_stand_still_lend_their_lanes(drafts: Drafts) -> None:
    """The draft model has lanes for two texts and their drafts, and one that its own callers find."""
    with (
        mp.load(drafts(0.0, None), backend="numba", max_lanes=5) as draft,
        mp.load("tiny", backend="numba", max_lanes=2, draft=draft) as model,
    ):
        streams = [model.stream([5, 6, number], max_tokens=300, ignore_eos=True, seed=1) for number in range(5, 9)]
        for stream in streams:
            next(stream)
        assert len(draft.manager.lanes) <= 4
        assert draft.generate([5, 6, 7], **OPTIONS).tokens
        found = model.generate(STORY, **OPTIONS)
        assert found.timings.accepted_tokens > 10
        for stream in streams:
            stream.close()
        assert draft.manager.lanes == ()


@pytest.mark.usefixtures("eager")
def test_no_answer_ends_where_warnings_are_errors(drafts: Drafts) -> None:
    with mp.load(drafts(0.0, None), backend="numba") as draft, mp.load("tiny", backend="numba", draft=draft) as model:
        draft.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(model.generate(STORY, **OPTIONS).tokens) == 24


def test_a_model_with_other_ids_is_refused(drafts: Drafts, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no-such-model"):
        mp.load("tiny", draft="no-such-model")
    other = shutil.copytree(drafts(0.0, None), tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}))
    weights = load_file(other / "model.safetensors")
    cut = {name: w[:1000] if "embed" in name or "lm_head" in name else w for name, w in weights.items()}
    save_file(cut, other / "model.safetensors")
    for tokenizer in other.glob("tokenizer*"):
        tokenizer.unlink()
    with pytest.raises(InputError, match="1000 token ids"):
        mp.load("tiny", draft=other)

"""Adapters of a loaded model: per call, in one batch, in the cache, in sessions."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import deltas, peft_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import mistral_portable as mp
from mistral_portable.boundary.registry import select
from mistral_portable.config import Window
from mistral_portable.engine import Model
from mistral_portable.errors import CacheError, CheckpointError, InputError
from mistral_portable.testing.strategies import WINDOWS
from mistral_portable.weights import open_checkpoint

OPTIONS: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True, "logprobs": 1}
TEXT = [(5 + 7 * at) % 1000 for at in range(80)]
CHOICES: list[Any] = ["first", "second", {}, {"first": 0.5, "second": -1.0}]

Paths = Mapping[str, Path]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Two adapters of different ranks, of which the second changes the attention of some layers and the logits."""
    folder = tmp_path_factory.mktemp("adapters")
    second = peft_adapter(folder / "b", seed=2, rank=9, targets=("q_proj", "v_proj", "lm_head"), layers=(1, 3, None))
    return {"first": peft_adapter(folder / "a", seed=1), "second": second}


@pytest.fixture(scope="module")
def model(paths: Paths) -> Iterator[Model]:
    with mp.load("tiny", backend="numba", threads=1, adapters=paths) as loaded:
        yield loaded


def answer(model: Model, prompt: list[int], choice: Any, **options: Any) -> tuple[Any, ...]:
    found = model.generate(prompt, adapter=choice, **(OPTIONS | options))
    return found.tokens, found.logprobs


@pytest.mark.parametrize("backend", ["reference", "numba", "torch", "mlx", "jax"])
def test_an_adapter_is_what_the_merged_model_is(backend: str, paths: Paths, tmp_path: Path) -> None:
    checkpoint = open_checkpoint("tiny")
    changes = deltas(paths["first"])
    weights = {name: tensor.numpy() + changes.get(name, np.float32(0)) for name, tensor in checkpoint.tensors.items()}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((checkpoint.path / "config.json").read_text())
    with mp.load(tmp_path, backend="reference", dtype="float64") as merged:
        expected = merged.logits(TEXT)
    with mp.load("tiny", backend=backend, dtype="float32", adapters=paths) as model:
        found, without = model.logits(TEXT, adapter="first"), model.logits(TEXT, adapter={})
    scale = float(np.std(expected))
    assert float(np.std(without - expected)) > 0.1 * scale
    # In float32, through four layers whose weights are about doubled.
    assert float(np.max(np.abs(found - expected))) < 1e-3 * scale


def test_without_an_adapter_nothing_changes(model: Model) -> None:
    with mp.load("tiny", backend="numba", threads=1) as plain:
        np.testing.assert_array_equal(model.logits(TEXT), plain.logits(TEXT))
        assert answer(model, TEXT, None) == answer(plain, TEXT, None)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])  # each loads three models
@given(
    window=st.sampled_from(WINDOWS),
    asked=st.lists(st.tuples(st.integers(1, 3 * 8), st.sampled_from(CHOICES), st.booleans()), min_size=2, max_size=8),
    chunk=st.integers(1, 30),
)
def test_answers_of_many_adapters_at_once_are_those_alone(
    paths: Paths, window: Window, asked: list[tuple[int, Any, bool]], chunk: int
) -> None:
    """Texts with one beginning, read with different adapters in the same steps: nobody finds another's pages."""
    options: dict[str, Any] = {"backend": "numba", "threads": 1, "window": window, "adapters": paths}
    prompts = [[*TEXT[:40], *range(length), int(other)] for length, _, other in asked]
    with mp.load("tiny", cache_bytes=0, **options) as model:
        alone = [answer(model, prompt, choice) for prompt, (_, choice, _) in zip(prompts, asked, strict=True)]
        logits = model.logits(prompts[0], chunk, adapter=asked[0][1])
        np.testing.assert_array_equal(logits, model.logits(prompts[0], adapter=asked[0][1]))
    with mp.load("tiny", **options) as model:
        for _ in range(2):  # the second time much is in the cache
            answers = [
                model.answer(prompt, adapter=choice, **OPTIONS)
                for prompt, (_, choice, _) in zip(prompts, asked, strict=True)
            ]
            by_request = {each.completion: each for each in answers}
            for completion in model.loop.run(list(by_request)):
                by_request[completion].take()
            assert [(each.generation.tokens, each.generation.logprobs) for each in answers] == alone
        assert model.manager.lanes == ()


def test_numbers_of_numpy_are_weights(model: Model) -> None:
    expected = answer(model, TEXT, {"first": 0.5})
    assert answer(model, TEXT, {"first": np.float32(0.5)}) == expected
    assert answer(model, TEXT, {"first": np.int64(1)}) == answer(model, TEXT, "first")


def test_the_cache_is_kept_by_adapter_and_weight(paths: Paths) -> None:
    with mp.load("tiny", backend="numba", threads=1, adapters=paths) as model:
        for choice in [*CHOICES, {"first": 0.5}]:
            assert model.generate(TEXT, adapter=choice, **OPTIONS).timings.cached_tokens == 0
            assert model.generate(TEXT, adapter=choice, **OPTIONS).timings.cached_tokens == len(TEXT) - 1
        assert model.generate(TEXT, adapter={"first": 1.0}, **OPTIONS).timings.cached_tokens == len(TEXT) - 1


def test_load_says_what_calls_have_that_ask_for_none(paths: Paths, model: Model) -> None:
    with mp.load("tiny", backend="numba", threads=1, adapters=paths, adapter={"second": 0.5}) as loaded:
        assert loaded.adapters == ("first", "second")
        assert answer(loaded, TEXT, None) == answer(model, TEXT, {"second": 0.5})
        assert answer(loaded, TEXT, {}) == answer(model, TEXT, None)
        np.testing.assert_array_equal(loaded.logits(TEXT), model.logits(TEXT, adapter={"second": 0.5}))


def test_whole_tables_take_the_place_of_the_models(tmp_path: Path) -> None:
    """Each adapter's own, of two."""
    tables = ("lm_head", "model.embed_tokens")
    paths = {name: peft_adapter(tmp_path / name, seed=seed, whole=tables, targets=()) for seed, name in enumerate("ab")}
    checkpoint = open_checkpoint("tiny")
    with mp.load("tiny", backend="numba", threads=1, adapters=paths) as model:
        for name, path in paths.items():
            own = load_file(path / "adapter_model.safetensors")
            weights = {weight: tensor.numpy() for weight, tensor in checkpoint.tensors.items()}
            weights |= {f"{table}.weight": own[f"base_model.model.{table}.weight"] for table in tables}
            folder = tmp_path / f"merged {name}"
            folder.mkdir()
            save_file(weights, folder / "model.safetensors")
            (folder / "config.json").write_text((checkpoint.path / "config.json").read_text())
            with mp.load(folder, backend="numba", threads=1) as merged:
                np.testing.assert_array_equal(model.logits(TEXT, adapter=name), merged.logits(TEXT))
        with pytest.raises(InputError, match=r"its weight is 0 or 1, not 0\.5"):
            model.generate(TEXT, adapter={"a": 0.5})
        with pytest.raises(InputError, match="adapters a, b replace whole weights: use one of them at a time"):
            model.generate(TEXT, adapter={"a": 1, "b": 1})


@pytest.mark.parametrize("backend", ["reference", "numba", "torch", "mlx", "jax"])
def test_an_adapter_that_overflows_harms_nobody_else(backend: str, tmp_path: Path) -> None:
    """0 times infinity would be NaN, in the rows of those who do not ask for it."""
    path = peft_adapter(tmp_path / "huge", seed=0, targets=("q_proj", "down_proj"), factor=6e4)
    for dtype in {"float32", "float16"} & select(backend).capabilities.dtypes.keys():
        with mp.load("tiny", backend=backend, dtype=dtype) as plain:
            expected = plain.logits(TEXT)
        with mp.load("tiny", backend=backend, dtype=dtype, adapters={"huge": path}) as model:
            np.testing.assert_array_equal(model.logits(TEXT), expected)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_steps_ahead_have_the_adapters_of_their_requests(backend: str, paths: Paths) -> None:
    """Tokens that a device chooses, while the host begins the next step, are those that the host chooses."""
    with mp.load("tiny", backend=backend, adapters=paths, cache_bytes=0) as model:
        asked = [([*TEXT[:20], number], choice) for number, choice in enumerate(CHOICES)]
        by_host = [model.generate(prompt, adapter=choice, **OPTIONS) for prompt, choice in asked]
        options = {**OPTIONS, "logprobs": None}
        answers = [model.answer(prompt, adapter=choice, **options) for prompt, choice in asked]
        by_request = {each.completion: each for each in answers}
        for completion in model.loop.run(list(by_request)):
            by_request[completion].take()
        assert [each.generation.tokens for each in answers] == [each.tokens for each in by_host]


def test_sessions_are_found_with_their_adapter(paths: Paths, tmp_path: Path) -> None:
    file = tmp_path / "text.session"
    options: dict[str, Any] = {"backend": "numba", "threads": 1}
    with mp.load("tiny", adapters=paths, **options) as model:
        expected = answer(model, TEXT, "second")
        assert model.save_session(file) == len(TEXT) + OPTIONS["max_tokens"] - 1
        assert model.save_session(file, TEXT, adapter="second") == len(TEXT)
        with pytest.raises(InputError, match="this text is not in the cache"):
            model.save_session(file, TEXT)
    with mp.load("tiny", adapters={"renamed": paths["second"]}, **options) as model:
        assert model.load_session(file) == len(TEXT)
        with pytest.raises(InputError, match="give the prompt, too, or leave it out"):
            model.save_session(file, adapter="renamed")
        assert model.generate(TEXT, **OPTIONS).timings.cached_tokens == 0
        found = model.generate(TEXT, adapter="renamed", **OPTIONS)
        assert found.timings.cached_tokens == len(TEXT) - 1
        assert (found.tokens, found.logprobs) == expected
    same: dict[str, Path] = {"one": paths["second"], "two": paths["second"]}
    with mp.load("tiny", adapters=same, **options) as model:
        assert model.load_session(file) == len(TEXT)
        assert model.generate(TEXT, adapter="one", **OPTIONS).timings.cached_tokens == len(TEXT) - 1
    for others in ({}, {"first": paths["first"]}):
        with (
            mp.load("tiny", adapters=others, **options) as model,
            pytest.raises(CacheError, match="it is of an adapter that this model has not"),
        ):
            model.load_session(file)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("third", "adapter='third' is not loaded: there are first, second"),
        ({"first": float("nan")}, "adapter 'first' has the weight nan: give a number up to 65504"),
        ({"first": 10**400}, "adapter 'first' has the weight 1000"),
        ({"first": -1e39}, "give a number up to 65504"),
        ({"first": "1"}, "adapter 'first' has the weight '1'"),
        ({"first": True}, "adapter 'first' has the weight True"),
        (3, "adapter=3 must be the name of an adapter, or weights by name"),
    ],
)
def test_choices_that_cannot_be_had(model: Model, choice: Any, message: str) -> None:
    for call in (model.generate, model.logits):
        with pytest.raises(InputError, match=message):
            call([1, 2], adapter=choice)
    assert model.manager.lanes == ()


def test_one_process_goes_with_all_that_several_do_not(paths: Paths) -> None:
    with mp.load("tiny", backend="reference", tensor_parallel=1, adapters=paths, draft="tiny") as model:
        assert model.generate([1], max_tokens=2).tokens


def test_loads_that_cannot_be_had(paths: Paths) -> None:
    with mp.load("tiny", backend="reference") as model, pytest.raises(InputError, match=r"give load\(..., adapters="):
        model.generate([1], adapter="first")
    for wrong in ({"": paths["first"]}, {"a": ""}, {"a": 3}, ["a"], "a", 5):
        with pytest.raises(InputError, match="must be paths by name"):
            mp.load("tiny", adapters=wrong)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no such file or folder"):
        mp.load("tiny", adapters={"a": "x" * 5000})
    with pytest.raises(InputError, match="adapters and tensor_parallel do not go together"):
        mp.load("tiny", backend="torch", tensor_parallel=2, adapters=paths)

"""Embeddings: the hidden states that transformers calls last_hidden_state, pooled, alone and together."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mistral_portable as mp
from mistral_portable.engine.embedding import Pooling
from mistral_portable.errors import InputError
from mistral_portable.transformers import MistralModel

POOLINGS: list[Pooling] = ["last", "mean"]
PROMPTS = ["Once upon a time", "One day", "Tom has a red ball. " * 40]


@pytest.fixture(scope="module")
def model() -> Iterator[mp.Model]:
    with mp.load("tiny", backend="numba", dtype="float32", max_lanes=3, embeddings=True) as model:
        yield model


@pytest.mark.parametrize("pooling", POOLINGS)
def test_they_are_those_of_the_hidden_states(model: mp.Model, pooling: Pooling) -> None:
    documented = MistralModel.from_pretrained("tiny", backend="numba", dtype="float32")
    for prompt, vector in zip(PROMPTS, model.embed(PROMPTS, pooling=pooling), strict=True):
        states = np.asarray(documented(np.array([model.encode(prompt)])).last_hidden_state)[0]
        pooled = states[-1] if pooling == "last" else states.mean(axis=0)
        # Both are float32, of two programs whose chunks and fused linears differ.
        np.testing.assert_allclose(vector, pooled / np.linalg.norm(pooled), atol=1e-5)


@settings(max_examples=10)
@given(st.lists(st.lists(st.integers(3, 900), min_size=1, max_size=40), min_size=1, max_size=8))
def test_together_they_are_what_they_are_alone(model: mp.Model, prompts: list[list[int]]) -> None:
    for pooling in POOLINGS:
        together = model.embed(prompts, pooling=pooling)
        np.testing.assert_array_equal(
            together, np.concatenate([model.embed([one], pooling=pooling) for one in prompts])
        )
        # A few roundings of float32.
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)


def test_answers_run_beside_them(model: mp.Model) -> None:
    async def both() -> Any:
        return await asyncio.gather(
            model.aembed(PROMPTS), model.agenerate("Once", temperature=0, max_tokens=20), model.aembed(PROMPTS[:1])
        )

    vectors, generation, first = asyncio.run(both())
    np.testing.assert_array_equal(vectors, model.embed(PROMPTS))
    np.testing.assert_array_equal(first, vectors[:1])
    with mp.load("tiny", backend="numba", dtype="float32") as plain:
        assert plain.generate("Once", temperature=0, max_tokens=20).tokens == generation.tokens


def test_what_is_refused(model: mp.Model) -> None:
    wrong: list[Any] = [[], "Once", [""], [[]], [[5] * 40000], [[99999]]]
    for prompts in wrong:
        with pytest.raises(InputError):
            model.embed(prompts)
    with pytest.raises(InputError, match="pooling='first'"):
        model.embed(PROMPTS, pooling="first")  # type: ignore[arg-type]
    with mp.load("tiny", backend="numba") as plain, pytest.raises(InputError, match="embeddings=True"):
        plain.embed(PROMPTS)
    with pytest.raises(InputError, match="embeddings='yes'"):
        mp.load("tiny", embeddings="yes")  # type: ignore[arg-type]

"""The basis of the report on quantization: held-out stories, and models with columns in another order."""

from pathlib import Path

import numpy as np

import mistral_portable as mp
from tools.quantization_report import probabilities, reordered, stories


def test_stories_are_always_the_same_and_of_their_split() -> None:
    held_out, train = stories("held_out", 3000), stories("train", 3000)
    assert held_out == stories("held_out", 3000)
    assert not set(held_out.splitlines()) & set(train.splitlines())
    assert 3000 <= len(held_out) < 5000


def test_a_reordered_model_computes_the_same(tmp_path: Path) -> None:
    with mp.load("tiny", backend="reference") as model:
        text = stories("held_out", 3000)
        expected = probabilities(model, text)
        tokens = model.tokenizer.encode(text)
        assert abs(mp.perplexity(model, tokens, context=256).loss - expected.loss) < 1e-5
    with mp.load(reordered(tmp_path / "m", 1), backend="reference") as model:
        found = probabilities(model, text)
    np.testing.assert_allclose(found.log, expected.log, atol=1e-3)

"""The pipelines of heads that classify, beside transformers' over the same models and tokenizers."""

import copy
from typing import Any

import numpy as np
import pytest
import transformers
from documented.tokenizers import ours as our_tokenizer
from documented.tokenizers import theirs as their_tokenizer
from documented_models import VALUES, pair
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_portable import transformers as ours

WORDS = st.text(st.characters(codec="utf-8", categories=["L", "N", "Zs"]), min_size=1, max_size=12)
TEXTS = st.lists(WORDS, min_size=1, max_size=3)
SIZES: dict[str, Any] = {**VALUES, "vocab_size": 32768, "initializer_range": 0.5, "num_hidden_layers": 1}


def both(name: str, task: str, **changes: Any) -> tuple[Any, Any]:
    """The pipeline here and transformers'."""
    mine, theirs = pair(name, {**SIZES, **changes}, 0)
    for model in (mine, theirs):
        model.config.id2label = {0: "B-A", 1: "I-A", 2: "O"} if model.config.num_labels == 3 else {0: "x"}
    tokenizer = copy.copy(their_tokenizer("v3"))
    tokenizer.is_fast = False  # which the token classification asks for, and this class does not have
    wanted = transformers.pipeline(task, model=theirs, tokenizer=tokenizer)
    return ours.pipeline(task, mine, our_tokenizer("v3")), wanted


def same(found: Any, wanted: Any) -> None:
    """Equal but for rounding of scores."""
    if isinstance(wanted, dict):
        assert {name: found[name] for name in wanted if name != "score"} == {
            name: value for name, value in wanted.items() if name != "score"
        }
        assert found.keys() == wanted.keys()
        np.testing.assert_allclose(found["score"], wanted["score"], rtol=1e-4, atol=1e-5)
        return
    assert isinstance(found, list) == isinstance(wanted, list)
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        same(mine, theirs)


@pytest.fixture(scope="module", params=[(3, None), (1, None), (3, "multi_label_classification"), (1, "regression")])
def classifiers(request: Any) -> tuple[Any, Any]:
    labels, kind = request.param
    mine, theirs = both("MistralForSequenceClassification", "text-classification", num_labels=labels)
    for pipe in (mine, theirs):
        pipe.model.config.problem_type = kind
    return mine, theirs


@settings(max_examples=15)  # each runs a model of torch several times
@given(texts=TEXTS, function=st.sampled_from([None, "sigmoid", "softmax", "none"]))
def test_text_classification(classifiers: tuple[Any, Any], texts: list[str], function: str | None) -> None:
    mine, theirs = classifiers
    for inputs in (texts, texts[0], {"text": texts[0]}):
        for top in ({}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}):
            settings: Any = {"function_to_apply": function, **top}
            same(mine(inputs, **settings), theirs(inputs, **settings))


@settings(max_examples=15)  # the same
@given(texts=TEXTS)
def test_token_classification(texts: list[str]) -> None:
    mine, theirs = TOKENS
    for inputs in (texts, texts[0]):
        for ignored in (["O"], [], ["B-A", "I-A"]):
            same(mine(inputs, ignore_labels=ignored), theirs(inputs, ignore_labels=ignored))


TOKENS = both("MistralForTokenClassification", "token-classification")


def test_neighbours_are_joined() -> None:
    mine, _ = TOKENS
    text = "some words that a model reads, one after another, and again some words"
    entities, groups = mine(text), mine(text, aggregation_strategy="simple")
    joined: list[list[dict[str, Any]]] = []
    for entity in entities:
        follows = joined and joined[-1][-1]["index"] + 1 == entity["index"] and entity["entity"] == "I-A"
        joined[-1].append(entity) if follows else joined.append([entity])
    assert [group["entity_group"] for group in groups] == ["A"] * len(joined)
    for group, parts in zip(groups, joined, strict=True):
        assert group["score"] == pytest.approx(np.mean([part["score"] for part in parts]))
    assert max(map(len, joined)) > 1  # else nothing has been seen
    with pytest.raises(ValueError, match="tokens have no offsets"):
        mine(text, aggregation_strategy="first")


def test_features() -> None:
    mine, theirs = both("MistralModel", "feature-extraction")
    np.testing.assert_allclose(mine("two words"), theirs("two words"), rtol=1e-4, atol=1e-4)
    assert np.array_equal(mine(["two words"], return_tensors=True)[0], np.float32(mine("two words")))


def test_iterators_and_batches() -> None:
    mine, _ = TOKENS
    assert [*mine(iter(["a b", "c"]), batch_size=2)] == mine(["a b", "c"]) == [mine("a b"), mine("c")]
    with pytest.raises(ValueError, match="batch_size=0 must be an integer"):
        mine("a", batch_size=0)


def test_other_names_of_tasks() -> None:
    mine, _ = TOKENS
    assert isinstance(ours.pipeline("ner", mine.model, mine.tokenizer), ours.TokenClassificationPipeline)
    assert isinstance(ours.pipeline(model=mine.model, tokenizer=mine.tokenizer), ours.TokenClassificationPipeline)
    with pytest.raises(ValueError, match="task='sentiment-analysis' needs a MistralForSequenceClassification"):
        ours.pipeline("sentiment-analysis", mine.model, mine.tokenizer)


@pytest.mark.parametrize("wrong", [7, [], [7], {"text": 7}, {"text": "a", "text_pair": "b"}])
def test_what_is_no_text(classifiers: tuple[Any, Any], wrong: Any) -> None:
    with pytest.raises(ValueError, match="pass a text"):
        classifiers[0](wrong)

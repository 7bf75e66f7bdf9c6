"""Pipelines of the heads that classify, and of the model without a head: each text runs alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError
from mistral_portable.transformers.fast_tokenizer import PreTrainedTokenizerFast
from mistral_portable.transformers.modeling import (
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralModel,
)
from mistral_portable.transformers.pipeline_inputs import mapped
from mistral_portable.transformers.tokenizer import MistralCommonTokenizer

__all__ = ["FeatureExtractionPipeline", "TextClassificationPipeline", "TokenClassificationPipeline"]

_FUNCTIONS = ("sigmoid", "softmax", "none")


class TextClassificationPipeline:
    """Names the label of a text, with its score.

    A text gives `[{"label": its label, "score": how sure it is}]`, a list of texts a list of such mappings, an iterator
    an iterator. With top_k each text gives a list of mappings, the best first: so many, or with None all.
    """

    task = "text-classification"

    def __init__(
        self, model: MistralForSequenceClassification, tokenizer: MistralCommonTokenizer | PreTrainedTokenizerFast
    ) -> None:
        """Keep a model and its tokenizer; `pipeline` makes both."""
        self.model, self.tokenizer = model, tokenizer

    def __call__(
        self,
        inputs: Any,
        *,
        function_to_apply: str | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> Any:
        """Classify a text (also as {"text": it}), a list of texts, or an iterator over them.

        function_to_apply: "softmax", "sigmoid" or "none"; by default none for regression, sigmoid for one label or
        several at a time (config.problem_type), else softmax. batch_size: has no effect. settings: top_k, and arguments
        of the tokenizer, such as truncation.

        Raises InputError for what is no text.
        """
        several, top_k = "top_k" in settings, settings.pop("top_k", 1)
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise InputError(f"top_k={top_k!r:.40} must be None or an integer from 1 on")
        apply = self._function(function_to_apply)

        def run(texts: list[Any]) -> list[Any]:
            logits = [self._logits(text if isinstance(text, str) else text["text"], settings) for text in texts]
            found = [self._labels(_scores(own, apply))[:top_k] for own in logits]
            return found if several else [best for best, *_ in found]

        result = mapped(inputs, run, batch_size, _is_text, 'a text, {"text": it}')
        return [result] if isinstance(inputs, str) and not several else result

    def _function(self, given: str | None) -> str:
        if given is None:
            kind, labels = self.model.config.problem_type, self.model.config.num_labels
            if kind == "regression":
                return "none"
            return "sigmoid" if kind == "multi_label_classification" or labels == 1 else "softmax"
        if not isinstance(given, str) or given.lower() not in _FUNCTIONS:
            raise InputError(f"function_to_apply={given!r:.40}: choose {', '.join(_FUNCTIONS)}")
        return given.lower()

    def _logits(self, text: str, settings: Mapping[str, Any]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.model(**self.tokenizer([text], return_tensors="np", **settings)).logits[0]
        return logits

    def _labels(self, scores: NDArray[np.floating[Any]]) -> list[dict[str, Any]]:
        names = self.model.config.id2label
        order = sorted(range(len(scores)), key=lambda label: -float(scores[label]))
        return [{"label": names[label], "score": float(scores[label])} for label in order]


class TokenClassificationPipeline:
    """Names the label of each token of a text, with its score.

    A text gives a list of `{"entity": the label, "score", "index": the token's place, "word": the token, "start": None,
    "end": None}`, as there are no offsets; a list of texts gives a list of these, an iterator an iterator.
    aggregation_strategy="simple" joins neighbours: labels B-X, I-X, I-X are one `{"entity_group": "X", ...}`.
    """

    task = "token-classification"

    def __init__(
        self, model: MistralForTokenClassification, tokenizer: MistralCommonTokenizer | PreTrainedTokenizerFast
    ) -> None:
        """Keep a model and its tokenizer; `pipeline` makes both."""
        self.model, self.tokenizer = model, tokenizer

    def __call__(
        self,
        inputs: Any,
        *,
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] = ("O",),
        batch_size: int | None = None,
    ) -> Any:
        """Classify the tokens of a text, a list of texts, or an iterator over them, but special tokens.

        aggregation_strategy: "none" or "simple". ignore_labels: labels that are left out. batch_size: has no effect.
        Raises InputError for what is no text, and for strategies that need the words' places in the text.
        """
        if aggregation_strategy not in ("none", "simple"):
            raise InputError(
                f"aggregation_strategy={aggregation_strategy!r:.40}: choose 'none' or 'simple': tokens have no offsets"
            )

        def run(texts: list[str]) -> list[Any]:
            found = [self._entities(text) for text in texts]
            if aggregation_strategy == "simple":
                found = [[*map(self._joined, _groups(entities))] for entities in found]
            shown = "entity" if aggregation_strategy == "none" else "entity_group"
            return [[_without_id(own) for own in entities if own[shown] not in ignore_labels] for entities in found]

        return mapped(inputs, run, batch_size, lambda given: isinstance(given, str), "a text")

    def _entities(self, text: str) -> list[dict[str, Any]]:
        encoded = self.tokenizer([text], return_tensors="np")
        scores = [_scores(row, "softmax") for row in self.model(**encoded).logits[0]]
        ids, special = encoded["input_ids"][0].tolist(), {*self.tokenizer.all_special_ids}
        names = self.model.config.id2label
        return [
            {
                "entity": names[int(own.argmax())],
                "score": float(own.max()),
                "index": index,
                "word": self.tokenizer.convert_ids_to_tokens(id),
                "start": None,
                "end": None,
                "id": id,
            }
            for index, (id, own) in enumerate(zip(ids, scores, strict=True))
            if id not in special
        ]

    def _joined(self, entities: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "entity_group": entities[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([entity["score"] for entity in entities])),
            "word": self.tokenizer.decode([entity["id"] for entity in entities], skip_special_tokens=True),
            "start": None,
            "end": None,
        }


class FeatureExtractionPipeline:
    """Gives the last hidden states of a text: nested lists [1, T, hidden_size]; of a list of texts a list of these."""

    task = "feature-extraction"

    def __init__(self, model: MistralModel, tokenizer: MistralCommonTokenizer | PreTrainedTokenizerFast) -> None:
        """Keep a model and its tokenizer; `pipeline` makes both."""
        self.model, self.tokenizer = model, tokenizer

    def __call__(
        self, inputs: Any, *, return_tensors: bool = False, batch_size: int | None = None, **settings: Any
    ) -> Any:
        """Run a text, a list of texts, or an iterator over them.

        return_tensors: whether arrays are returned in place of lists. batch_size: has no effect. settings: arguments of
        the tokenizer, such as truncation. Raises InputError for what is no text.
        """

        def run(texts: list[str]) -> list[Any]:
            encoded = (self.tokenizer([text], return_tensors="np", **settings) for text in texts)
            found = [self.model(**own, use_cache=False).last_hidden_state for own in encoded]
            return found if return_tensors else [states.tolist() for states in found]

        return mapped(inputs, run, batch_size, lambda given: isinstance(given, str), "a text")


def _is_text(given: Any) -> bool:
    text = given["text"] if isinstance(given, Mapping) and {*given} == {"text"} else given
    return isinstance(text, str)


def _scores(logits: NDArray[np.float32], function: str) -> NDArray[np.float32]:
    if function == "sigmoid":
        return (1 / (1 + np.exp(-logits))).astype(np.float32)
    if function == "none":
        return logits
    grown = np.exp(logits - logits.max())
    softmax: NDArray[np.float32] = grown / grown.sum()
    return softmax


def _groups(entities: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Neighbours of one label; B- begins another group."""
    groups: list[list[Mapping[str, Any]]] = []
    for entity in entities:
        goes_on = groups and not entity["entity"].startswith("B-") and _tag(entity) == _tag(groups[-1][-1])
        if goes_on:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return groups


def _tag(entity: Mapping[str, Any]) -> str:
    name: str = entity["entity"]
    return name[2:] if name.startswith(("B-", "I-")) else name


def _without_id(entity: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entity.items() if name != "id"}

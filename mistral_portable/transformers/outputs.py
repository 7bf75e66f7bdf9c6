"""Outputs of the models: dataclasses whose fields are also items, by name and by index."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

__all__ = [
    "BaseModelOutputWithPast",
    "CausalLMOutputWithPast",
    "FlaxBaseModelOutputWithPast",
    "FlaxCausalLMOutputWithCrossAttentions",
    "GenerateBeamDecoderOnlyOutput",
    "GenerateDecoderOnlyOutput",
    "ModelOutput",
    "QuestionAnsweringModelOutput",
    "SequenceClassifierOutputWithPast",
    "TokenClassifierOutput",
]


class ModelOutput:
    """Base of all outputs. Fields that are None are left out of keys and indices.

    Example: `output.logits`, `output["logits"]` and, if there is no loss, `output[0]` are the same.
    """

    def keys(self) -> tuple[str, ...]:
        """The names of the fields that are not None, in order."""
        names = (field.name for field in fields(self))  # type: ignore[arg-type]  # the subclasses are dataclasses
        return tuple(name for name in names if getattr(self, name) is not None)

    def values(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Names and values of the fields that are not None, in order."""
        return tuple((name, getattr(self, name)) for name in self.keys())

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None: the result of a call with `return_dict=False`."""
        return self.values()

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()


@dataclass
class BaseModelOutputWithPast(ModelOutput):
    """The output of MistralModel.

    last_hidden_state: float32 [B, T, hidden_size], after the final norm. hidden_states: L + 1 arrays of that shape: the
    embeddings, then each layer's output, the last one after the final norm. attentions: L arrays [B, heads, T, keys].
    past_key_values: the Cache. The other outputs have these fields, too.
    """

    last_hidden_state: Any = None
    past_key_values: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """The output of MistralForCausalLM. logits: float32 [B, T, vocab_size], or only the columns of `logits_to_keep`."""

    loss: Any = None
    logits: Any = None
    past_key_values: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class SequenceClassifierOutputWithPast(ModelOutput):
    """The output of MistralForSequenceClassification. logits: float32 [B, num_labels]."""

    loss: Any = None
    logits: Any = None
    past_key_values: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """The output of MistralForTokenClassification. logits: float32 [B, T, num_labels]."""

    loss: Any = None
    logits: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """The output of MistralForQuestionAnswering. start_logits, end_logits: float32 [B, T]."""

    loss: Any = None
    start_logits: Any = None
    end_logits: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class GenerateDecoderOnlyOutput(ModelOutput):
    """The output of `generate` with `return_dict_in_generate=True`.

    sequences: int64 [B, T]. scores, logits: float32 [B, vocab_size] of each step, as tokens are chosen by them and as
    the model makes them. attentions, hidden_states: of each step a tuple as a call returns it, of the prompt first.
    past_key_values: the Cache, without the last column. What the call does not ask for is None.
    """

    sequences: Any = None
    scores: tuple[Any, ...] | None = None
    logits: tuple[Any, ...] | None = None
    attentions: tuple[tuple[Any, ...], ...] | None = None
    hidden_states: tuple[tuple[Any, ...], ...] | None = None
    past_key_values: Any = None

    @property
    def cache(self) -> Any:
        """The past_key_values under transformers' newer name."""
        return self.past_key_values


@dataclass
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """The output of `generate` with beams; as GenerateDecoderOnlyOutput, but for a row of each step per beam.

    sequences_scores: float32 [B], with `output_scores`: the sum of a text's log-probabilities, divided by its length to
    the power of length_penalty. beam_indices: int64 [B, new], the row of each step that a token was chosen by, -1
    behind the end.
    """

    sequences: Any = None
    sequences_scores: Any = None
    scores: tuple[Any, ...] | None = None
    logits: tuple[Any, ...] | None = None
    beam_indices: Any = None
    attentions: tuple[tuple[Any, ...], ...] | None = None
    hidden_states: tuple[tuple[Any, ...], ...] | None = None
    past_key_values: Any = None

    @property
    def cache(self) -> Any:
        """The past_key_values under transformers' newer name."""
        return self.past_key_values


@dataclass
class FlaxBaseModelOutputWithPast(BaseModelOutputWithPast):
    """The output of FlaxMistralModel. past_key_values: arrays by name; None if the call had none."""


@dataclass
class FlaxCausalLMOutputWithCrossAttentions(ModelOutput):
    """The output of FlaxMistralForCausalLM. logits: float32 [B, T, vocab_size]. cross_attentions: always None."""

    logits: Any = None
    past_key_values: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None

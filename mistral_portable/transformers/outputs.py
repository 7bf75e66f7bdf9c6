"""What models return: attributes, which are also items by name and by place; None is left out of places."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

__all__ = [
    "BaseModelOutputWithPast",
    "CausalLMOutputWithPast",
    "FlaxBaseModelOutputWithPast",
    "FlaxCausalLMOutputWithCrossAttentions",
    "ModelOutput",
    "QuestionAnsweringModelOutput",
    "SequenceClassifierOutputWithPast",
    "TokenClassifierOutput",
]


class ModelOutput:
    """`output.logits`, `output["logits"]`, `output[0]` (the first that is not None), `output.to_tuple()`."""

    def keys(self) -> tuple[str, ...]:
        """Names of what is not None, in order."""
        names = (field.name for field in fields(self))  # type: ignore[arg-type]  # the subclasses are dataclasses
        return tuple(name for name in names if getattr(self, name) is not None)

    def values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        return tuple((name, getattr(self, name)) for name in self.keys())

    def to_tuple(self) -> tuple[Any, ...]:
        """All that is not None: what a call with `return_dict=False` returns."""
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
    """last_hidden_state: [B, T, hidden_size], after the final norm. hidden_states: L + 1 arrays like it, the embeddings
    first, the last one normed. attentions: L arrays [B, heads, T, keys]."""

    last_hidden_state: Any = None
    past_key_values: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """loss: of the labels. logits: float32 [B, T, vocab_size], or of the tokens that `logits_to_keep` names."""

    loss: Any = None
    logits: Any = None
    past_key_values: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class SequenceClassifierOutputWithPast(ModelOutput):
    """logits: [B, num_labels]."""

    loss: Any = None
    logits: Any = None
    past_key_values: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """logits: [B, T, num_labels]."""

    loss: Any = None
    logits: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """start_logits, end_logits: [B, T]."""

    loss: Any = None
    start_logits: Any = None
    end_logits: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class FlaxBaseModelOutputWithPast(BaseModelOutputWithPast):
    """past_key_values: arrays by name, if the call had some."""


@dataclass
class FlaxCausalLMOutputWithCrossAttentions(ModelOutput):
    """logits: float32 [B, T, vocab_size]. A decoder has no cross_attentions: None."""

    logits: Any = None
    past_key_values: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None

"""The documented models: a decoder with one of five heads, on any backend, for inference."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError
from mistral_portable.transformers import losses
from mistral_portable.transformers.arrays import as_numpy, integers
from mistral_portable.transformers.cache import Cache
from mistral_portable.transformers.generate import Generates
from mistral_portable.transformers.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from mistral_portable.transformers.pretrained_model import MistralPreTrainedModel

__all__ = [
    "MistralForCausalLM",
    "MistralForQuestionAnswering",
    "MistralForSequenceClassification",
    "MistralForTokenClassification",
    "MistralModel",
]


class MistralModel(MistralPreTrainedModel):
    """The decoder without a head; returns last_hidden_state."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Any = None,
    ) -> Any:
        """Run the model; arguments and errors as in MistralPreTrainedModel. Returns BaseModelOutputWithPast."""
        exposed = self._exposed(output_hidden_states, output_attentions)
        result = self._run(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, exposed, cache_position
        )
        last = result.make(result.outputs["last_hidden_state"])
        return self._finish(BaseModelOutputWithPast(last, result.past, **result.exposed), return_dict)


class MistralForCausalLM(Generates):
    """The decoder with its LM head; returns logits, and the loss of labels."""

    head: ClassVar[str] = "causal_lm"

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Any = None,
        logits_to_keep: Any = 0,
    ) -> Any:
        """Run the model; arguments and errors as in MistralPreTrainedModel. Returns CausalLMOutputWithPast.

        labels: integers [B, T]; -100 does not count. The logits at column t are compared with label t + 1, unless
        column t is padding.

        logits_to_keep: 0 for all logits, n for those of the last n columns, or the columns [n].
        """
        exposed = self._exposed(output_hidden_states, output_attentions)
        result = self._run(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            exposed,
            cache_position,
            logits_to_keep,
        )
        logits = result.outputs["logits"]
        loss = None
        if labels is not None:
            wanted = integers("labels", labels, result.batch.shape)
            if logits.shape[:2] != wanted.shape:
                raise InputError(f"labels has the shape {list(wanted.shape)}, and the logits {list(logits.shape[:2])}")
            after_padding = ~np.roll(result.batch.kept, 1, axis=1)
            loss = losses.causal_lm(logits, np.where(after_padding, losses.IGNORED, wanted))
        output = CausalLMOutputWithPast(result.make(loss), result.make(logits), result.past, **result.exposed)
        return self._finish(output, return_dict)


class MistralForSequenceClassification(MistralPreTrainedModel):
    """The decoder with a linear layer over the rightmost token of each row that is not padding."""

    head: ClassVar[str] = "sequence_classification"

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; arguments as in MistralPreTrainedModel. Returns SequenceClassifierOutputWithPast.

        labels: [B], or [B, num_labels]; see `losses.sequence_classification`. If config.problem_type is None, the
        labels decide it, and it is set. The token that counts is the rightmost one of a row that is neither masked nor
        config.pad_token_id.

        Raises InputError for more than one row without a pad_token_id, and as MistralPreTrainedModel does.
        """
        rows = inputs_embeds if input_ids is None else input_ids
        if rows is not None and self.config.pad_token_id is None and np.shape(rows)[:1] not in ((), (1,)):
            raise InputError("Cannot handle batch sizes > 1 if no padding token is defined.")
        exposed = self._exposed(output_hidden_states, output_attentions)
        result = self._run(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, exposed)
        pad, ids, shape = self.config.pad_token_id, result.ids, result.batch.shape
        counts = result.batch.kept if ids is None or pad is None else result.batch.kept & (ids != pad)
        last = (np.arange(shape[1]) * counts).argmax(1)
        logits = result.outputs["logits"][np.arange(shape[0]), last]
        loss = None
        if labels is not None:
            wanted = as_numpy("labels", labels)
            problem_type = self.config.problem_type or _problem_type(logits.shape[1], wanted)
            loss = losses.sequence_classification(logits, wanted, problem_type)
            self.config.problem_type = problem_type
        output = SequenceClassifierOutputWithPast(result.make(loss), result.make(logits), result.past, **result.exposed)
        return self._finish(output, return_dict)


class MistralForTokenClassification(MistralPreTrainedModel):
    """The decoder with a linear layer over every token."""

    head: ClassVar[str] = "token_classification"

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; arguments and errors as in MistralPreTrainedModel. Returns TokenClassifierOutput.

        No cache is returned. labels: integers [B, T]; -100 does not count.
        """
        exposed = self._exposed(output_hidden_states, output_attentions)
        result = self._run(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, False, exposed)
        logits = result.outputs["logits"]
        loss = None
        if labels is not None:
            wanted = integers("labels", labels, result.batch.shape)
            loss = losses.cross_entropy(logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1))
        return self._finish(
            TokenClassifierOutput(result.make(loss), result.make(logits), **result.exposed), return_dict
        )


class MistralForQuestionAnswering(MistralPreTrainedModel):
    """The decoder with a linear layer for the first and the last token of an answer."""

    head: ClassVar[str] = "question_answering"

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Any = None,
        start_positions: Any = None,
        end_positions: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; arguments and errors as in MistralPreTrainedModel. Returns QuestionAnsweringModelOutput.

        No cache is returned. start_positions, end_positions: columns [B] of the answer's first and last token; the loss
        needs both.
        """
        exposed = self._exposed(output_hidden_states, output_attentions)
        result = self._run(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, False, exposed)
        start, end = np.moveaxis(result.outputs["logits"], -1, 0)
        loss = None
        if start_positions is not None and end_positions is not None:
            begins, ends = (
                integers(name, np.reshape(as_numpy(name, given), -1), result.batch.shape[:1])
                for name, given in (("start_positions", start_positions), ("end_positions", end_positions))
            )
            loss = losses.question_answering(start, end, begins, ends, result.batch.kept)
        output = QuestionAnsweringModelOutput(
            result.make(loss), result.make(start.copy()), result.make(end.copy()), **result.exposed
        )
        return self._finish(output, return_dict)


def _problem_type(labels: int, given: NDArray[Any]) -> str:
    if labels == 1:
        return "regression"
    return "single_label_classification" if given.dtype.kind in "iu" else "multi_label_classification"

"""The documented models: a decoder with one of five heads, on any backend, for inference."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError
from mistral_portable.transformers import losses
from mistral_portable.transformers.arrays import as_numpy, integers, library_of
from mistral_portable.transformers.batch import read_batch
from mistral_portable.transformers.cache import Cache
from mistral_portable.transformers.generation import continue_rows, inferred_mask, sampling_params, with_defaults
from mistral_portable.transformers.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from mistral_portable.transformers.pretrained_model import MistralPreTrainedModel
from mistral_portable.transformers.seeds import fresh_seed

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


class MistralForCausalLM(MistralPreTrainedModel):
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

    def generate(
        self,
        inputs: Any = None,
        *,
        input_ids: Any = None,
        inputs_embeds: Any = None,
        attention_mask: Any = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        do_sample: bool | None = None,
        num_return_sequences: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        seed: int | None = None,
        **rules: Any,
    ) -> Any:
        """Continue each row: int64 [B * num_return_sequences, T + new]; rows that end early are padded on the right.

        inputs (or input_ids): integers [B, T], with the attention_mask of their padding; without one, a padding token
        that is no end token is padding wherever it is, as in transformers. inputs_embeds: floats
        [B, T, hidden_size] in their place; the result is then int64 [B * num_return_sequences, new].
        max_new_tokens: 20 by default; max_length includes the prompt's columns. do_sample: draw, with temperature,
        top_k (50), top_p, min_p and typical_p; else greedy. repetition_penalty: for tokens that are in the row. seed:
        row r draws with seed + r. eos_token_id, pad_token_id: by default the config's; without a padding token, the
        first end token pads. What is None or left out here is as `generation_config`, the fields of the model's
        generation_config.json, says.

        Raises InputError (a ValueError) for arguments that do not fit or are not supported, NumericsError for logits
        that are NaN or infinite, ClosedError if the model is closed, CapacityError without memory for even one row.
        """
        given = [prompt for prompt in (inputs, input_ids, inputs_embeds) if prompt is not None]
        if len(given) != 1:
            raise InputError("generate takes one of inputs and input_ids, token ids [batch, tokens], or inputs_embeds")
        named = {
            "max_new_tokens": max_new_tokens,
            "max_length": max_length,
            "do_sample": do_sample,
            "num_return_sequences": num_return_sequences,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
        }
        rules = with_defaults({**named, **rules}, self.generation_config)
        max_new_tokens, max_length, do_sample, returned, eos_token_id, pad_token_id = (rules.pop(key) for key in named)
        count = 1 if returned is None else _positive("num_return_sequences", returned)
        if count > 1 and not do_sample:
            raise InputError(f"num_return_sequences={count} would all be the same: pass do_sample=True")
        prompt = as_numpy("input_ids", given[0], 2) if inputs_embeds is None else as_numpy("inputs_embeds", given[0], 3)
        own = self.decoder.config.eos_token_ids
        ends = own if eos_token_id is None else integers("eos_token_id", eos_token_id).ravel().tolist()
        pad = self.config.pad_token_id if pad_token_id is None else int(integers("pad_token_id", pad_token_id, ()))
        mask = None if attention_mask is None else as_numpy("attention_mask", attention_mask, 2)
        if mask is None and inputs_embeds is None:
            mask = inferred_mask(prompt, pad, ends)
        if mask is not None:
            mask = np.repeat(mask, count, 0)
        prompt = np.repeat(prompt, count, 0)
        batch = read_batch(prompt, mask, None, [np.zeros(0, np.intp)] * len(prompt), 0, self.decoder.config)
        if max_new_tokens is None:
            max_new_tokens = 20 if max_length is None else _positive("max_length", max_length) - prompt.shape[1]
            if max_new_tokens < 1:
                raise InputError(f"{max_length=} leaves no room after the {prompt.shape[1]} columns of the prompt")
        seed = fresh_seed() if seed is None else seed
        params = sampling_params(do_sample, _positive("max_new_tokens", max_new_tokens), seed, rules)
        after = continue_rows(self.decoder, batch, params, ends, next(iter(ends), 0) if pad is None else pad)
        if inputs_embeds is None:
            after = np.concatenate([prompt.astype(np.int64), after], axis=1)
        return library_of(given[0]).make(after)


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


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name}={value!r} must be an integer from 1 on")
    return int(value)


def _problem_type(labels: int, given: NDArray[Any]) -> str:
    if labels == 1:
        return "regression"
    return "single_label_classification" if given.dtype.kind in "iu" else "multi_label_classification"

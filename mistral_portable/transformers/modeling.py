"""The classes of Hugging Face's documentation, on any backend, for inference."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mistral_portable.engine.blocks import block_maker
from mistral_portable.errors import ConfigError, InputError
from mistral_portable.executor import ExecutorOptions
from mistral_portable.graph import build
from mistral_portable.registry import select
from mistral_portable.transformers import losses
from mistral_portable.transformers.arrays import Library, as_numpy, integers, library_of
from mistral_portable.transformers.batch import Batch, read_batch
from mistral_portable.transformers.cache import Cache
from mistral_portable.transformers.configuration import MistralConfig
from mistral_portable.transformers.decoder import ATTENTIONS, HIDDEN_STATES, Decoder, Outputs
from mistral_portable.transformers.generation import continued, sampling_params
from mistral_portable.transformers.options import backend_options, ggml_type
from mistral_portable.transformers.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    ModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from mistral_portable.transformers.saving import save
from mistral_portable.weights import DenseTensor, Tensor, open_checkpoint

__all__ = [
    "MistralForCausalLM",
    "MistralForQuestionAnswering",
    "MistralForSequenceClassification",
    "MistralForTokenClassification",
    "MistralModel",
    "MistralPreTrainedModel",
]


class MistralPreTrainedModel:
    """What the models share: how they are made, and what a call takes.

    A call takes arrays of NumPy, torch, MLX or JAX, or lists, and returns arrays of the same library:

    input_ids: [B, T]. attention_mask: 1 keep, 0 masked, [B, T] or, with a cache, [B, past + T]: padding may be
    anywhere, and each row is as if it were alone. past_key_values: the Cache that an earlier call returned; only the
    ids that follow are passed. use_cache: return one (by default the config's). output_hidden_states,
    output_attentions: the config's by default; the first call with one of them reads the weights once more, for a
    program that shows them. return_dict=False: a tuple. position_ids and cache_position may say what is so anyway.

    What is returned where there is padding is 0. Raises InputError, which is a ValueError, for arguments that do not
    fit, and CacheError if more rows are open than there are lanes.
    """

    head: ClassVar[str] = "none"

    def __init__(
        self,
        config: MistralConfig,
        *,
        backend: str = "auto",
        tensors: Mapping[str, Tensor] | None = None,
        options: ExecutorOptions | None = None,
        source: str = "the config",
    ) -> None:
        """Of a config alone: random weights, normal with its `initializer_range`; norms are 1, biases 0."""
        self.config = config
        labels = int(config.num_labels)
        if tensors is None:
            tensors = _random(config, self.head, labels)
        self.tensors = tensors
        self.decoder = Decoder(
            config.native(),
            tensors,
            select(backend),
            options or ExecutorOptions(),
            head=self.head,
            num_labels=labels,
            source=source,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        config: MistralConfig | None = None,
        backend: str = "auto",
        dtype: Any = None,
        torch_dtype: Any = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        revision: str | None = None,
        **changed: Any,
    ) -> Self:
        """Of a checkpoint in any format that this library reads: a folder, a file, a hub id, "tiny".

        dtype (older: torch_dtype): "auto" or None for the backend's choice, else a name, or a dtype of NumPy or torch.
        device_map: "auto", or a device of the backend torch. attn_implementation: of the backend torch.
        quantization_config: a BitsAndBytesConfig. `changed`: fields of the config that get another value.
        """
        if config is not None and (changed or not isinstance(config, MistralConfig)):
            raise InputError("config= is a MistralConfig, and has all fields: change them there")
        chosen = select(backend).name
        blocks = ggml_type(chosen, quantization_config)
        checkpoint = open_checkpoint(name, revision=revision, quantize=blocks, make=block_maker())
        read = config or MistralConfig.from_dict({**checkpoint.config.to_dict(), **_known(changed)})
        options = backend_options(
            chosen, torch_dtype if dtype is None else dtype, device_map, attn_implementation, quantization_config
        )
        return cls(read, backend=chosen, tensors=checkpoint.tensors, options=options, source=str(checkpoint.path))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and safetensors, for transformers and for `from_pretrained`; packed weights as float32.

        Files of these names are replaced when the new ones are complete. Raises CheckpointError if they cannot be.
        """
        graph = build(self.config.native(), head=self.head, num_labels=int(self.config.num_labels))
        tensors = {name: self.tensors[name] for name in graph.tensors}
        save(Path(folder), self.config, type(self).__name__, tensors)

    def eval(self) -> Self:
        """As torch's; models here only infer."""
        return self

    def to(self, device: Any) -> Self:
        """As torch's, where the model is already. Raises InputError elsewhere: `from_pretrained(device_map=...)` moves.

        "cuda" is where any CUDA device is.
        """
        at = str(getattr(getattr(self.decoder.program, "device", None), "type", "cpu"))
        if str(device).partition(":")[0] != at:
            raise InputError(f"the model is on {at}: to have it on {device}, load it with device_map={str(device)!r}")
        return self

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.forward(*arguments, **named)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        """Release the executor's threads and memory."""
        self.decoder.close()

    def _run(
        self,
        input_ids: Any,
        attention_mask: Any,
        position_ids: Any,
        past_key_values: Cache | None,
        inputs_embeds: Any,
        use_cache: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        columns: Any = None,
        cache_position: Any = None,
    ) -> "_Result":
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is not None:
            raise InputError("inputs_embeds is not supported: pass input_ids")
        library = library_of(input_ids, attention_mask)
        ids = as_numpy("input_ids", input_ids, 2)
        if past_key_values is not None and not isinstance(past_key_values, Cache):
            raise InputError(f"past_key_values is a {type(past_key_values).__name__}: pass what a call has returned")
        if past_key_values is not None and past_key_values.manager is not self.decoder.manager:
            raise InputError("past_key_values are another model's: pass what a call of this one has returned")
        if past_key_values is not None and len(past_key_values) != len(ids):
            raise InputError(f"input_ids has {len(ids)} rows, and past_key_values {len(past_key_values)}")
        batch = read_batch(
            ids,
            None if attention_mask is None else as_numpy("attention_mask", attention_mask, 2),
            None if position_ids is None else as_numpy("position_ids", position_ids, 2),
            [np.zeros(0, np.intp)] * len(ids) if past_key_values is None else past_key_values.columns,
            0 if past_key_values is None else past_key_values.get_seq_length(),
            self.decoder.config.vocab_size,
        )
        if cache_position is not None:
            first = 0 if past_key_values is None else past_key_values.get_seq_length()
            if integers("cache_position", cache_position).tolist() != list(range(first, first + batch.shape[1])):
                raise InputError(f"cache_position must count the columns from {first} on; leave it out")
        rows = None if columns is None else _columns(columns, batch.shape[1])
        wanted = {
            HIDDEN_STATES: self.config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            ATTENTIONS: self.config.output_attentions if output_attentions is None else output_attentions,
        }
        shown = frozenset(name for name, asked in wanted.items() if asked)
        keep = (self.config.use_cache if use_cache is None else use_cache) or past_key_values is not None
        past = self.decoder.new_cache(len(ids)) if past_key_values is None else past_key_values
        try:
            outputs = self.decoder.run(batch, past, shown, rows)
        finally:
            if not keep:
                past.close()
        return _Result(library, ids, batch, outputs, past if keep else None, shown)

    def _finish(self, output: ModelOutput, return_dict: bool | None) -> Any:
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()


class _Result:
    """Outputs of a run, in NumPy, and as the user's arrays."""

    def __init__(
        self,
        library: Library,
        ids: NDArray[Any],
        batch: Batch,
        outputs: Outputs,
        past: Cache | None,
        shown: frozenset[str],
    ) -> None:
        self.ids, self.batch, self.outputs, self.past = ids, batch, outputs, past
        self._library, self._shown = library, shown

    def make(self, array: Any) -> Any:
        return None if array is None else self._library.make(np.asarray(array))

    def series(self, name: str) -> tuple[Any, ...] | None:
        """`hidden_states` or `attentions`, by layer; None if nobody asked."""
        if name not in self._shown:
            return None
        count = sum(key.startswith(f"{name}.") for key in self.outputs)
        return tuple(self.make(self.outputs[f"{name}.{layer}"]) for layer in range(count))

    @property
    def shown(self) -> dict[str, Any]:
        return {name: self.series(name) for name in (HIDDEN_STATES, ATTENTIONS)}


class MistralModel(MistralPreTrainedModel):
    """The decoder without a head: last_hidden_state."""

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
        """BaseModelOutputWithPast; see MistralPreTrainedModel."""
        result = self._run(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            cache_position=cache_position,
        )
        last = result.make(result.outputs["last_hidden_state"])
        return self._finish(BaseModelOutputWithPast(last, result.past, **result.shown), return_dict)


class MistralForCausalLM(MistralPreTrainedModel):
    """The decoder with its LM head: logits, and the loss of labels."""

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
        """CausalLMOutputWithPast. labels: [B, T], -100 where nothing counts; what is said behind token t is compared
        with label t + 1, unless t is padding, behind which nothing is said.

        logits_to_keep: 0 for all logits, n for those of the last n columns, or the columns [n].
        """
        result = self._run(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            logits_to_keep,
            cache_position,
        )
        logits = result.outputs["logits"]
        loss = None
        if labels is not None:
            wanted = integers("labels", labels, result.batch.shape)
            if logits.shape[:2] != wanted.shape:
                raise InputError(f"labels has the shape {list(wanted.shape)}, and the logits {list(logits.shape[:2])}")
            behind_padding = ~np.roll(result.batch.kept, 1, axis=1)
            loss = losses.causal_lm(logits, np.where(behind_padding, losses.IGNORED, wanted))
        output = CausalLMOutputWithPast(result.make(loss), result.make(logits), result.past, **result.shown)
        return self._finish(output, return_dict)

    def generate(
        self,
        inputs: Any = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        do_sample: bool = False,
        num_return_sequences: int = 1,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        seed: int | None = None,
        **rules: Any,
    ) -> Any:
        """Continue each row: int64 [B * num_return_sequences, T + new], rows that end early padded on the right.

        inputs (or input_ids): [B, T], padded on either side, with the attention_mask that says so. max_new_tokens: 20
        by default; max_length counts the prompt's columns, too. do_sample: draw, with temperature, top_k (50), top_p,
        min_p, typical_p; else the likeliest token. repetition_penalty: of tokens in the row. seed: row r draws with
        seed + r. eos_token_id, pad_token_id: the config's by default; the first end token pads if there is no other.

        Raises InputError, a ValueError, for what does not fit, and for arguments of transformers' that are not
        supported.
        """
        prompt = input_ids if inputs is None else inputs
        if (inputs is None) == (input_ids is None):
            raise InputError("generate takes one of inputs and input_ids: pass token ids [batch, tokens]")
        ids = np.repeat(as_numpy("input_ids", prompt, 2), _positive("num_return_sequences", num_return_sequences), 0)
        mask = None if attention_mask is None else as_numpy("attention_mask", attention_mask, 2)
        if mask is not None:
            mask = np.repeat(mask, num_return_sequences, 0)
        none = [np.zeros(0, np.intp)] * len(ids)
        batch = read_batch(ids, mask, None, none, 0, self.decoder.config.vocab_size)
        if max_new_tokens is None:
            max_new_tokens = 20 if max_length is None else _positive("max_length", max_length) - ids.shape[1]
        params = sampling_params(do_sample, _positive("max_new_tokens", max_new_tokens), seed, rules)
        own = self.decoder.config.eos_token_ids
        ends = own if eos_token_id is None else integers("eos_token_id", np.ravel(eos_token_id)).tolist()
        pad = self.config.pad_token_id if pad_token_id is None else int(integers("pad_token_id", pad_token_id, ()))
        after = continued(self.decoder, batch, params, ends, next(iter(ends), 0) if pad is None else pad)
        return library_of(prompt).make(np.concatenate([ids.astype(np.int64), after], axis=1))


class MistralForSequenceClassification(MistralPreTrainedModel):
    """`score` of the rightmost token that is no padding."""

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
        """SequenceClassifierOutputWithPast. labels: [B], or [B, num_labels]; see `losses.sequence_classification`.

        Of each row the rightmost id that is not config.pad_token_id counts, whatever the mask says. Without a
        pad_token_id it is the last one, and there may be one row only. Without a config.problem_type the labels
        decide, and it is set.
        """
        if input_ids is not None and self.config.pad_token_id is None and len(input_ids) != 1:
            raise InputError("Cannot handle batch sizes > 1 if no padding token is defined.")
        result = self._run(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
        )
        pad, ids = self.config.pad_token_id, result.ids
        last = np.full(len(ids), ids.shape[1] - 1)
        if pad is not None:
            last = (np.arange(ids.shape[1]) * (ids != pad)).argmax(1)
        logits = result.outputs["logits"][np.arange(len(ids)), last]
        loss = None
        if labels is not None:
            wanted = as_numpy("labels", labels)
            if self.config.problem_type is None:
                self.config.problem_type = _problem_type(logits.shape[1], wanted)
            loss = losses.sequence_classification(logits, wanted, self.config.problem_type)
        output = SequenceClassifierOutputWithPast(result.make(loss), result.make(logits), result.past, **result.shown)
        return self._finish(output, return_dict)


class MistralForTokenClassification(MistralPreTrainedModel):
    """`score` of every token."""

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
        """TokenClassifierOutput, without a cache. labels: [B, T], -100 where nothing counts."""
        result = self._run(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            False,
            output_attentions,
            output_hidden_states,
        )
        logits = result.outputs["logits"]
        loss = None
        if labels is not None:
            wanted = integers("labels", labels, result.batch.shape)
            loss = losses.cross_entropy(logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1))
        return self._finish(TokenClassifierOutput(result.make(loss), result.make(logits), **result.shown), return_dict)


class MistralForQuestionAnswering(MistralPreTrainedModel):
    """Where an answer begins and ends."""

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
        """QuestionAnsweringModelOutput, without a cache. start_positions, end_positions: [B]; the loss needs both."""
        result = self._run(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            False,
            output_attentions,
            output_hidden_states,
        )
        start, end = np.moveaxis(result.outputs["logits"], -1, 0)
        loss = None
        if start_positions is not None and end_positions is not None:
            begins, ends = (
                integers(name, np.reshape(as_numpy(name, given), -1), result.batch.shape[:1])
                for name, given in (("start_positions", start_positions), ("end_positions", end_positions))
            )
            loss = losses.question_answering(start, end, begins, ends, result.batch.kept)
        output = QuestionAnsweringModelOutput(
            result.make(loss), result.make(start.copy()), result.make(end.copy()), **result.shown
        )
        return self._finish(output, return_dict)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value!r} must be an integer from 1 on")
    return value


def _columns(wanted: Any, length: int) -> list[int] | None:
    """`logits_to_keep` as columns; None for all."""
    if isinstance(wanted, int | np.integer):
        if wanted < 0:
            raise InputError(f"logits_to_keep={wanted} must be 0 (all), or how many of the last, or columns")
        return list(range(max(0, length - int(wanted)), length)) if wanted else None
    columns = as_numpy("logits_to_keep", wanted, 1)
    if columns.dtype.kind not in "iu" or np.any(columns < -length) or np.any(columns >= length):
        raise InputError(f"logits_to_keep={columns.tolist()!r:.60} must be columns within {length}")
    return [int(column) % length for column in columns]


def _problem_type(labels: int, given: NDArray[Any]) -> str:
    if labels == 1:
        return "regression"
    return "single_label_classification" if given.dtype.kind in "iu" else "multi_label_classification"


def _known(changed: Mapping[str, Any]) -> dict[str, Any]:
    fields = vars(MistralConfig())
    if unknown := sorted(changed.keys() - fields.keys()):
        raise ConfigError(f"{unknown[0]}={changed[unknown[0]]!r:.40}: no argument, and no field of the config")
    return dict(changed)


def _random(config: MistralConfig, head: str, num_labels: int) -> dict[str, Tensor]:
    random = np.random.default_rng()
    tensors: dict[str, Tensor] = {}
    for name, shape in build(config.native(), head=head, num_labels=num_labels).tensors.items():
        if len(shape) == 1:
            values = np.full(shape, 0.0 if name.endswith(".bias") else 1.0, np.float32)
        else:
            values = random.standard_normal(shape, np.float32) * np.float32(config.initializer_range)
        tensors[name] = DenseTensor(name, "float32", values)
    return tensors

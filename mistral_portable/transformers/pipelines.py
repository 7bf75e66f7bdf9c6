"""pipeline("text-generation"): continues texts and answers chats."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mistral_portable.boundary.registry import select
from mistral_portable.errors import InputError
from mistral_portable.transformers.auto_tokenizer import AutoTokenizer
from mistral_portable.transformers.fast_tokenizer import PreTrainedTokenizerFast
from mistral_portable.transformers.modeling import MistralForCausalLM
from mistral_portable.transformers.tokenizer import MistralCommonTokenizer

__all__ = ["TextGenerationPipeline", "pipeline"]

PipelineTokenizer = MistralCommonTokenizer | PreTrainedTokenizerFast

_DEFAULTS: dict[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
"""transformers' defaults for this task."""


def pipeline(
    task: str | None = None,
    model: str | Path | MistralForCausalLM | None = None,
    tokenizer: str | Path | PipelineTokenizer | None = None,
    *,
    device: int | str | None = None,
    device_map: Any = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **loading: Any,
) -> "TextGenerationPipeline":
    """Make a pipeline from a checkpoint, or from a model and its tokenizer.

    device: the number of a CUDA GPU, or -1 for the CPU; a backend without a choice of devices takes 0 for its own.
    loading: arguments of MistralForCausalLM.from_pretrained, such as torch_dtype and backend.

    Raises InputError for a task other than "text-generation", without a model, or for a model without a tokenizer.
    """
    if task not in (None, "text-generation"):
        raise InputError(f"task={task!r}: only 'text-generation' is there")
    if model is None:
        raise InputError("pipeline needs a model: pass a name, a path or a MistralForCausalLM")
    if not isinstance(model, str | Path | MistralForCausalLM):
        raise InputError(f"model is a {type(model).__name__}: pass a name, a path or a MistralForCausalLM")
    if not isinstance(tokenizer, str | Path | PipelineTokenizer | None):
        raise InputError(f"tokenizer is a {type(tokenizer).__name__}: pass a name, a path or a tokenizer")
    if isinstance(model, MistralForCausalLM):
        if tokenizer is None:
            raise InputError("pipeline needs the model's tokenizer: pass tokenizer=")
        opened = model
    else:
        tokenizer = model if tokenizer is None else tokenizer
        if device is not None and device_map is not None:
            raise InputError(f"device={device!r} and device_map={device_map!r}: pass one of them")
        at = _device(device, loading.get("backend", "auto")) if device_map is None else device_map
        opened = MistralForCausalLM.from_pretrained(model, **{"device_map": at, **loading, **(model_kwargs or {})})
    if not isinstance(tokenizer, PipelineTokenizer):
        assert tokenizer is not None
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    return TextGenerationPipeline(opened, tokenizer)


class TextGenerationPipeline:
    """Continues texts and answers chats.

    A text gives `[{"generated_text": the text and its continuation}]`; messages give `[{"generated_text": the messages
    and the answer as one more}]`; a list of either gives a list of these. If the last message is the assistant's, it
    is continued.
    """

    task = "text-generation"

    def __init__(self, model: MistralForCausalLM, tokenizer: PipelineTokenizer) -> None:
        """Keep a model and its tokenizer; `pipeline` makes both."""
        self.model, self.tokenizer = model, tokenizer

    def __call__(self, text_inputs: Any, *, return_full_text: bool = True, **generating: Any) -> Any:
        """Generate from a text, messages, or a list of either.

        return_full_text: False leaves out the prompt. generating: arguments of `generate`; by default up to 256 tokens
        are drawn at a temperature of 0.7. Raises InputError for anything that is neither a text nor messages.
        """
        if _is_one(text_inputs):
            return self._answer(text_inputs, return_full_text, generating)
        if not isinstance(text_inputs, Sequence) or not text_inputs or not all(map(_is_one, text_inputs)):
            raise InputError(f"{text_inputs!r:.60}: pass a text, a list of messages, or a list of either")
        return [self._answer(one, return_full_text, generating) for one in text_inputs]

    def _answer(self, prompt: Any, full: bool, generating: Mapping[str, Any]) -> list[dict[str, Any]]:
        chat = not isinstance(prompt, str)
        goes_on = chat and prompt[-1].get("role") == "assistant"
        if goes_on and not isinstance(prompt[-1].get("content"), str):
            raise InputError("the last message, the assistant's, is to be continued: its content must be a text")
        ids = self._chat([*prompt], goes_on) if chat else self.tokenizer.encode(prompt)
        chosen = {**_DEFAULTS, **generating}
        if "max_length" in generating and "max_new_tokens" not in generating:
            del chosen["max_new_tokens"]
        found = self.model.generate([ids], **chosen)
        return [{"generated_text": self._text(prompt, ids, row.tolist(), full, chat, goes_on)} for row in found]

    def _chat(self, messages: list[Any], goes_on: bool) -> list[int]:
        if isinstance(self.tokenizer, MistralCommonTokenizer):  # its chats always end where the model answers
            ids = self.tokenizer.apply_chat_template(messages, continue_final_message=goes_on)
        else:
            ids = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=not goes_on, continue_final_message=goes_on
            )
        return list(ids)

    def _text(self, prompt: Any, ids: list[int], row: list[int], full: bool, chat: bool, goes_on: bool) -> Any:
        text = self.tokenizer.decode_after(ids, row[len(ids) :])
        if not full:
            return text
        if not chat:
            return prompt + text
        *before, last = [dict(message) for message in prompt]
        if goes_on:
            return [*before, {**last, "content": last["content"] + text}]
        return [*before, last, {"role": "assistant", "content": text}]


def _is_one(given: Any) -> bool:
    """Whether this is one prompt: a text, or a list of messages."""
    messages = isinstance(given, Sequence) and len(given) > 0 and all(isinstance(item, Mapping) for item in given)
    return isinstance(given, str) or messages


def _device(device: int | str | None, backend: str) -> int | str | None:
    if device == -1:
        return "cpu"
    return None if device == 0 and "device" not in select(backend).capabilities.options else device

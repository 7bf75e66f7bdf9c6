"""TextGenerationPipeline: continues texts and answers chats."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mistral_portable.errors import InputError
from mistral_portable.transformers.fast_tokenizer import PreTrainedTokenizerFast
from mistral_portable.transformers.modeling import MistralForCausalLM
from mistral_portable.transformers.pipeline_inputs import is_one, mapped
from mistral_portable.transformers.tokenizer import MistralCommonTokenizer

__all__ = ["TextGenerationPipeline"]

_DEFAULTS: dict[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
"""transformers' defaults for this task."""


class TextGenerationPipeline:
    """Continues texts and answers chats.

    A text gives `[{"generated_text": the text and its continuation}]`; messages give `[{"generated_text": the messages
    and the answer as one more}]`; a list of either gives a list of these, an iterator an iterator. If the last message
    is the assistant's, it is continued.
    """

    task = "text-generation"

    def __init__(self, model: MistralForCausalLM, tokenizer: MistralCommonTokenizer | PreTrainedTokenizerFast) -> None:
        """Keep a model and its tokenizer; `pipeline` makes both."""
        self.model, self.tokenizer = model, tokenizer

    def __call__(
        self,
        text_inputs: Any,
        *,
        return_full_text: bool | None = None,
        return_text: bool | None = None,
        return_tensors: bool | None = None,
        continue_final_message: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        prefix: str = "",
        batch_size: int | None = None,
        **generating: Any,
    ) -> Any:
        """Generate from a text, messages, a list of either, or an iterator over them, which is read as results are.

        return_full_text: False leaves out the prompt. return_tensors=True gives `generated_token_ids`, a list with
        those of the prompt, in place of the text; return_text has no effect. continue_final_message: whether the last
        message is the beginning of the answer; None: if it is the assistant's. tools, documents: for the chat template.
        prefix: a text in front of each text. batch_size: prompts that run together, each as if alone. generating:
        arguments of `generate`; by default up to 256 tokens are drawn at a temperature of 0.7.

        Raises InputError for anything that is neither a text nor messages.
        """
        if sum(bool(given) for given in (return_text, return_tensors)) > 1 or (return_tensors and return_full_text):
            raise InputError("return_tensors=True goes with neither return_text=True nor return_full_text=True")
        chats = {
            "tools": tools,
            "continue_final_message": continue_final_message,
            **({} if documents is None else {"documents": documents}),
        }

        def run(prompts: list[Any]) -> list[Any]:
            begun = [prefix + prompt if isinstance(prompt, str) else prompt for prompt in prompts]
            ids = [self._ids(prompt, chats) for prompt in begun]
            found = self._generate(ids, generating)
            if return_tensors:
                both = zip(ids, found, strict=True)
                return [[{"generated_token_ids": own + row} for row in rows] for own, rows in both]
            full = return_full_text is not False
            return [
                [{"generated_text": self._text(prompt, own, row, full, continue_final_message)} for row in rows]
                for prompt, own, rows in zip(prompts, ids, found, strict=True)
            ]

        return mapped(text_inputs, run, batch_size, is_one, "a text, a list of messages")

    def _ids(self, prompt: Any, chats: Mapping[str, Any]) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer.encode(prompt))
        messages, arguments = [*prompt], dict(chats)
        goes_on = _goes_on(prompt, arguments.pop("continue_final_message"))
        if goes_on and not isinstance(prompt[-1].get("content"), str):
            raise InputError("the last message is to be continued: its content must be a text")
        if not isinstance(self.tokenizer, MistralCommonTokenizer):  # whose chats always end where the model answers
            arguments["add_generation_prompt"] = not goes_on
        return list(
            self.tokenizer.apply_chat_template(messages, continue_final_message=goes_on, return_dict=False, **arguments)
        )

    def _generate(self, ids: Sequence[Sequence[int]], generating: Mapping[str, Any]) -> list[list[list[int]]]:
        """The ids that follow each prompt, once for each sequence that is returned."""
        chosen = {**_DEFAULTS, **generating}
        if "max_length" in generating and "max_new_tokens" not in generating:
            del chosen["max_new_tokens"]
        width = max(map(len, ids))
        padded = np.array([[0] * (width - len(own)) + [*own] for own in ids])
        mask = np.array([[0] * (width - len(own)) + [1] * len(own) for own in ids])
        rows = self.model.generate(padded, attention_mask=mask, **chosen)[:, width:].tolist()
        each = len(rows) // len(ids)
        return [rows[begin : begin + each] for begin in range(0, len(rows), each)]

    def _text(self, prompt: Any, ids: list[int], row: list[int], full: bool, continues: bool | None) -> Any:
        text = self.tokenizer.decode_after(ids, row)
        if not full:
            return text
        if isinstance(prompt, str):
            return prompt + text
        *before, last = [dict(message) for message in prompt]
        if _goes_on(prompt, continues):
            return [*before, {**last, "content": last["content"] + text}]
        return [*before, last, {"role": "assistant", "content": text}]


def _goes_on(messages: Sequence[Mapping[str, Any]], continues: bool | None) -> bool:
    """Whether the last message is the beginning of the answer."""
    return messages[-1].get("role") == "assistant" if continues is None else continues

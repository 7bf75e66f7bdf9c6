"""MistralCommonBackend: transformers 5.x's name of the class, with what 5.x does otherwise than 4.56."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn, Self

from mistral_portable.errors import InputError
from mistral_portable.transformers.chat import is_batch
from mistral_portable.transformers.tokenizer import MistralCommonTokenizer
from mistral_portable.transformers.tokenizer_base import refuse_unknown

__all__ = ["MistralCommonBackend"]

_LANGUAGE = re.compile(r"^lang:[a-z]{2}")
"""The beginning of transcriptions, which is no special token."""
_INIT = ("_from_auto", "backend", "files_loaded")
_LOADING = (*_INIT, "_commit_hash", "_from_pipeline", "dtype", "trust_remote_code")
"""Arguments that are accepted and have no effect, as in transformers."""


class MistralCommonBackend(MistralCommonTokenizer):
    """A MistralCommonTokenizer with the defaults and methods of transformers 5.x.

    Chats give an encoding unless return_dict=False, and take `add_generation_prompt`, `reasoning_effort` and other
    fields of mistral-common's request. All of mistral-common's modes are there, and `mode` is a ValidationMode.

    >>> MistralCommonBackend.from_pretrained("tiny").apply_chat_template([{"role": "user", "content": "Hello"}])
    {'input_ids': [1, 3, 867, 4], 'attention_mask': [1, 1, 1, 1]}
    """

    _modes: ClassVar[Sequence[str]] = ("serving", "finetuning", "test", "agnostic")

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Open a tokenizer's file; arguments and errors as in MistralCommonTokenizer."""
        from mistral_common.protocol.instruct.validator import ValidationMode

        super().__init__(*arguments, **_without(named, _INIT))
        self.mode = ValidationMode(self.mode)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *init_inputs: Any, **named: Any
    ) -> Self:
        """Open a model's tokenizer; arguments and errors as in MistralCommonTokenizer.

        trust_remote_code, dtype and transformers' internal arguments have no effect; so has an empty subfolder.
        """
        if named.pop("subfolder", None):
            raise InputError("subfolder is not supported: pass the path of the folder, or of the tokenizer's file")
        return super().from_pretrained(pretrained_model_name_or_path, *init_inputs, **_without(named, _LOADING))

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The named special tokens: "bos_token" -> "<s>" and so on."""
        named = {name: getattr(self, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return {name: token for name, token in named.items() if token is not None}

    def apply_chat_template(  # type: ignore[override]  # 5.x has another order
        self,
        conversation: Any,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: Any = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        reasoning_effort: str | None = None,
        **request: Any,
    ) -> Any:
        """Encode a conversation, up to the place where the model answers; a list of conversations gives a list.

        add_generation_prompt: has no effect but that the last message must not be the assistant's. reasoning_effort,
        request: fields of mistral-common's request. Other arguments, and errors, as in MistralCommonTokenizer.
        """
        if add_generation_prompt and continue_final_message:
            raise InputError("add_generation_prompt and continue_final_message exclude each other: pass one of them")
        if add_generation_prompt:
            _require_question(conversation)
        fields = request if reasoning_effort is None else {"reasoning_effort": reasoning_effort, **request}
        return self._requests(
            conversation,
            tools,
            continue_final_message,
            fields,
            tokenize=tokenize,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            return_dict=return_dict,
        )

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Encode; return_offsets_mapping and split_special_tokens must be False. See MistralCommonTokenizer."""
        return super().__call__(*arguments, **_unset(named))

    def encode(self, *arguments: Any, **named: Any) -> Any:
        """Encode a text; return_offsets_mapping and split_special_tokens must be False. See MistralCommonTokenizer."""
        return super().encode(*arguments, **_unset(named))

    def tokenize(self, *arguments: Any, **named: Any) -> list[str]:
        """Split a text; return_offsets_mapping and split_special_tokens must be False. See MistralCommonTokenizer."""
        return super().tokenize(*arguments, **_unset(named))

    def prepare_for_model(self, *arguments: Any, **named: Any) -> Any:
        """Prepare ids; return_offsets_mapping and split_special_tokens must be False, return_token_type_ids has no
        effect. See MistralCommonTokenizer."""
        return super().prepare_for_model(*arguments, **_without(_unset(named), ("return_token_type_ids",)))

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, *arguments: Any, **named: Any) -> Any:
        """Convert ids to text; with skip_special_tokens also without the "lang:en" at the beginning of transcripts."""
        text = super().decode(token_ids, skip_special_tokens, *arguments, **named)
        if not skip_special_tokens or isinstance(text, list):  # the texts of a list have been here
            return text
        return _LANGUAGE.sub("", text)

    def build_inputs_with_special_tokens(self, token_ids_0: Sequence[int], token_ids_1: None = None) -> list[int]:
        """Put the special tokens around ids: `<s>` before, and in all modes but "test" `</s>` behind them."""
        if token_ids_1 is not None:
            raise InputError("token_ids_1 is not supported: there are no pairs of texts")
        before, after = self._frame
        return [*before, *token_ids_0, *after]

    def create_token_type_ids_from_sequences(self, token_ids_0: Sequence[int], token_ids_1: None = None) -> list[int]:
        """Make a 0 for each id and each special token around them."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Count the special tokens that are put around a text."""
        if pair:
            raise InputError("pair=True is not supported: there are no pairs of texts")
        return len(self.build_inputs_with_special_tokens([]))

    def save_pretrained(  # type: ignore[override]  # 5.x has other arguments
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        token: str | bool | None = None,
        commit_message: str | None = None,
        repo_id: str | None = None,
        private: bool | None = None,
        save_format: str | None = None,
        **kwargs: Any,
    ) -> tuple[str, ...]:
        """Copy the tokenizer's file into a folder; see MistralCommonTokenizer. save_format: None or "mistral"."""
        refuse_unknown("save_pretrained", kwargs)
        if save_format not in (None, "mistral"):
            raise InputError(f"save_format={save_format!r:.40}: 'mistral' is there, the tokenizer's own file")
        return super().save_pretrained(save_directory, push_to_hub, token, commit_message, repo_id, private)

    def _not_there(self, *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError, as transformers' class does."""
        raise NotImplementedError("mistral-common has one file, no added tokens and no chat template that is a text")

    added_tokens_decoder = convert_added_tokens = get_chat_template = save_chat_templates = save_vocabulary = _not_there


def _without(named: Mapping[str, Any], inert: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if name not in inert}


def _unset(named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without those of other tokenizers. Raises InputError if one of these is set."""
    foreign = ("return_offsets_mapping", "split_special_tokens")
    if given := [name for name in foreign if named.get(name)]:
        raise InputError(f"{given[0]} is not supported: leave it out")
    return _without(named, foreign)


def _require_question(conversation: Any) -> None:
    """Raise InputError if a conversation ends with a message of the assistant."""
    for messages in conversation if is_batch(conversation) else [conversation]:
        last = messages[-1] if isinstance(messages, list | tuple) and messages else None
        if isinstance(last, Mapping) and last.get("role") == "assistant":
            raise InputError("the last message is the assistant's: pass continue_final_message=True to continue it")

"""MistralCommonTokenizer: transformers 4.56's class of this name, over mistral-common."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from mistral_portable.errors import InputError
from mistral_portable.tokenizer import GGUFVocabulary, TokenizerFile, TokenizerFolder
from mistral_portable.tokenizer.common import CommonTokenizer
from mistral_portable.tokenizer.load import load_own
from mistral_portable.tokenizer.open_common import Mode, load_common
from mistral_portable.transformers.chat import chat_ids
from mistral_portable.transformers.tokenizer_base import refuse_unknown
from mistral_portable.transformers.tokenizer_chats import ChatTokenizer
from mistral_portable.transformers.tokenizer_files import find_tokenizer, save_tokenizer, upload_file
from mistral_portable.transformers.vocabulary import CommonVocabulary

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

__all__ = ["MistralCommonTokenizer"]


_FOREIGN = "{}: added tokens or a chat template that are not Mistral's are left out here; AutoTokenizer has them"


class MistralCommonTokenizer(ChatTokenizer):
    """A tokenizer with the methods, defaults and refusals of transformers' class of this name.

    >>> tokenizer = MistralCommonTokenizer.from_pretrained("tiny")
    >>> tokenizer(["Hello", "Once upon a time"], padding=True).input_ids
    [[0, 0, 0, 1, 867], [1, 547, 550, 266, 549]]

    Text is never searched for special tokens: "<s>" is three characters. There are no pairs of texts, no words split
    beforehand, no token types and no added tokens. `docs/differences.md` lists the differences from transformers. For a
    model with tokens or a chat template that are not Mistral's own there is a warning, and chats are refused.

    tokenizer_path: a `tekken.json` or `tokenizer.model*` file, or a tokenizer that `open_checkpoint` found.
    mode: "test": texts begin with `<s>`, and a chat ends with a message to answer. "finetuning": texts also end with
    `</s>`, and a chat ends with an answer. mistral-common's `ValidationMode` is taken, too.
    model_max_length: the length for truncation and padding where no `max_length` is given.
    padding_side, truncation_side: "left" or "right".
    model_input_names: the entries that calls return; without "attention_mask" they return no mask.
    clean_up_tokenization_spaces: whether decoding removes the spaces before punctuation.

    The attribute `tokenizer` is mistral-common's; `pad_token_id` is the id of `<pad>` or, where there is none, of
    `<unk>`, and may be set, like `pad_token`.

    Raises InputError for an unknown argument and a value out of its range, TokenizerError if the file is missing,
    corrupt or not a tokenizer.
    """

    bos_token_id: int
    eos_token_id: int
    unk_token_id: int
    _modes: ClassVar[Sequence[str]] = ("test", "finetuning")

    def __init__(
        self,
        tokenizer_path: str | os.PathLike[str] | TokenizerFile | GGUFVocabulary,
        mode: str = "test",
        model_max_length: int = int(1e30),
        padding_side: str = "left",
        truncation_side: str = "right",
        model_input_names: Sequence[str] | None = None,
        clean_up_tokenization_spaces: bool = False,
        *,
        opened: CommonTokenizer | None = None,
        **kwargs: Any,
    ) -> None:
        """opened: the tokenizer of this file, if it is open already, for the mode "test"; see the class for others."""
        refuse_unknown("MistralCommonTokenizer", kwargs)
        if mode not in self._modes:
            raise InputError(f"mode={mode!r} is none of {', '.join(self._modes)}")
        self._source = (
            tokenizer_path
            if isinstance(tokenizer_path, TokenizerFile | GGUFVocabulary)
            else TokenizerFile(Path(tokenizer_path))
        )
        if opened is None:
            opened = load_own(self._source)
            if not opened.chats:
                warnings.warn(_FOREIGN.format(_name(self._source)), stacklevel=2)
        if mode != "test":
            opened = load_common(self._source, cast(Mode, getattr(mode, "value", mode)), chats=opened.chats)
        self._common = opened
        super().__init__(
            opened,
            CommonVocabulary(opened),
            model_max_length,
            padding_side,
            truncation_side,
            model_input_names,
            clean_up_tokenization_spaces,
        )
        self.mode = mode
        self.bos_token_id = opened.bos_id
        self.eos_token_id = opened.eos_id
        self.unk_token_id = CommonVocabulary(opened).unknown
        self.pad_token_id = opened.pad_id

    @property
    def tokenizer(self) -> MistralTokenizer[Any, Any, Any, Any, Any]:
        """mistral-common's tokenizer."""
        return self._common.mistral

    @property
    def _frame(self) -> tuple[list[int], list[int]]:
        return [self.bos_token_id], [self.eos_token_id] * (self.mode != "test")

    def _text(self, ids: list[int], skip_special_tokens: bool) -> str:
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

        return self.tokenizer.decode(ids, SpecialTokenPolicy.IGNORE if skip_special_tokens else SpecialTokenPolicy.KEEP)

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: Any = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Encode a conversation, up to the place where the model answers; a list of conversations gives a list.

        >>> tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])  # <s> [INST] Hello [/INST]
        [1, 3, 867, 4]

        conversation: messages with role and content, in OpenAI's format; in the mode "test" also in the forms that
        other clients send and mistral-common refuses, such as ids of calls in any form, or a late system message: they
        are read as the native `Tokenizer.chat` reads them. tools: JSON schemas of functions, in OpenAI's format.
        continue_final_message: whether the last message, the assistant's, is the beginning of the answer.
        tokenize: False returns a text to read; encoding it again does not find its special tokens.
        padding, truncation, max_length, return_tensors: see `__call__`; without effect on a text.
        return_dict: whether to return a BatchEncoding instead of the ids alone.

        Raises InputError for malformed messages and tools and for unknown arguments, TypeError for a `truncation` that
        is not a bool, MistralCommonException where the template forbids the order or the content of the messages.
        """
        if "add_generation_prompt" in kwargs:
            raise InputError("add_generation_prompt is not supported: a chat always ends where the model answers")
        refuse_unknown("apply_chat_template", kwargs)
        return self._requests(
            conversation,
            tools,
            continue_final_message,
            {},
            tokenize=tokenize,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            return_dict=return_dict,
        )

    def _requests(
        self,
        conversation: Any,
        tools: Sequence[Mapping[str, Any]] | None,
        continue_final_message: bool,
        request: Mapping[str, Any],
        **result: Any,
    ) -> Any:
        """The result of `apply_chat_template`. request: further fields of mistral-common's request."""

        def encode(chat: Any) -> list[int]:
            mends = self.mode == "test"
            return chat_ids(self._common, chat, tools, continue_final_message, mends=mends, request=request)

        return self._chats(conversation, encode, lambda chat: str(self.decode(encode(chat))), **result)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *init_inputs: Any,
        mode: str = "test",
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        model_max_length: int = int(1e30),
        padding_side: str = "left",
        truncation_side: str = "right",
        model_input_names: Sequence[str] | None = None,
        clean_up_tokenization_spaces: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Open a model's tokenizer.

        pretrained_model_name_or_path: a folder, in which `tekken.json` comes first, then the last `tokenizer.model*` by
        name; a model that contains its tokenizer, such as a GGUF file; "owner/name", a repository of the hub, from
        which only the tokenizer is downloaded; or "tiny", the embedded model.
        cache_dir, force_download, local_files_only, token, revision: arguments of the download. Others: see the class.

        Raises InputError if there is no tokenizer and for unknown arguments, CheckpointError if the model or the hub
        cannot be read, TokenizerError if the tokenizer is corrupt.
        """
        refuse_unknown("from_pretrained", kwargs)
        source = find_tokenizer(
            pretrained_model_name_or_path,
            init_inputs,
            revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        if isinstance(source, TokenizerFolder):
            raise InputError(
                f"{source.path}: no tekken.json and no tokenizer.model*, and mistral-common does not read "
                "tokenizer.json; use AutoTokenizer"
            )
        return cls(
            source,
            mode,
            model_max_length,
            padding_side,
            truncation_side,
            model_input_names,
            clean_up_tokenization_spaces,
        )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        token: str | bool | None = None,
        commit_message: str | None = None,
        repo_id: str | None = None,
        private: bool | None = None,
        repo_url: str | None = None,
        organization: str | None = None,
        **kwargs: Any,
    ) -> tuple[str, ...]:
        """Copy the tokenizer's file into a folder, from which `from_pretrained` makes an equal tokenizer.

        Returns the path of the file, as a tuple of one. save_directory: the folder, which is made if needed.
        push_to_hub: whether to upload the file, too, to the repository repo_id, that of the address repo_url, or one
        named like the folder; organization: its owner. token, commit_message, private: see `push_to_hub`.

        Raises InputError if save_directory is a file, OSError if the file cannot be written, CheckpointError if the
        upload fails.
        """
        refuse_unknown("save_pretrained", kwargs)
        file = save_tokenizer(self._source, save_directory)
        if push_to_hub:
            name = repo_id or "/".join((repo_url or file.parent.resolve().name).rstrip("/").split("/")[-2:])
            name = f"{organization}/{name.split('/')[-1]}" if organization else name
            upload_file(file, name, token=token, private=private, commit_message=commit_message)
        return (str(file),)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the tokenizer's file to a repository of the hub, which is made if needed; returns the commit's
        address.

        Arguments as in `huggingface_hub.HfApi.upload_file`. Raises CheckpointError without access or network.
        """
        with TemporaryDirectory() as folder:
            return upload_file(
                save_tokenizer(self._source, folder),
                repo_id,
                token=token,
                private=private,
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )

    @property
    def _summary(self) -> str:
        kind = f"{self._tokenizer.kind} {self._tokenizer.version}"
        return f"{kind}, vocab_size={self.vocab_size}, mode={str(self.mode)!r}"


def _name(source: TokenizerFile | GGUFVocabulary) -> str:
    return str(source.path) if isinstance(source, TokenizerFile) else "the GGUF file's tokenizer"

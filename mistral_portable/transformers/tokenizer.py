"""MistralCommonTokenizer: the class of transformers 4.56, over mistral-common."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any, Self

from mistral_portable.errors import InputError
from mistral_portable.transformers.chat import chat_ids, is_batch
from mistral_portable.transformers.encoder import Encoder
from mistral_portable.transformers.pretrained import find, save, upload
from mistral_portable.transformers.tokens import refuse

__all__ = ["MistralCommonTokenizer"]


class MistralCommonTokenizer(Encoder):
    """A tokenizer with the methods, defaults and refusals of transformers' class of this name.

    >>> tokenizer = MistralCommonTokenizer.from_pretrained("tiny")
    >>> tokenizer(["Hello", "Once upon a time"], padding=True).input_ids
    [[0, 0, 0, 1, 867], [1, 547, 550, 266, 549]]

    Text is never searched for special tokens: "<s>" is three characters. There are no pairs of texts, no words split
    beforehand, no token types and no added tokens. `docs/differences.md` lists what differs from transformers.

    Args:
        tokenizer_path: A `tekken.json` or `tokenizer.model*` file, or a tokenizer that `open_checkpoint` found.
        mode: "test": texts begin with `<s>`, and a chat ends with a message to answer. "finetuning": texts also end
            with `</s>`, and a chat ends with an answer. (Or mistral-common's `ValidationMode`.)
        model_max_length: The length for truncation and padding where no `max_length` is given.
        padding_side, truncation_side: "left" or "right".
        model_input_names: What calls return; without "attention_mask" they return none.
        clean_up_tokenization_spaces: Whether decoding drops the spaces before punctuation.

    Attributes:
        tokenizer: mistral-common's own tokenizer.
        pad_token_id: `<pad>`; where there is none, that of `<unk>`. It may be set, as may `pad_token`.

    Raises:
        ValueError: Any other argument, or a value that is none.
        TokenizerError: The file is missing, corrupt or no tokenizer.
    """

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
        """The ids of a conversation, up to where the model answers; of a list of conversations, a list.

        >>> tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])  # <s> [INST] Hello [/INST]
        [1, 3, 867, 4]

        Args:
            conversation: Messages with role and content, in OpenAI's format.
            tools: JSON schemas of functions, in OpenAI's format.
            continue_final_message: Whether the last message, an assistant's, is the beginning of the answer.
            tokenize: False returns a text: to read, not to encode, as no encoding finds the special tokens in it.
            padding, truncation, max_length, return_tensors: See `__call__`; no effect on a text.
            return_dict: Whether to return what calls return, in place of the ids alone.

        Raises:
            ValueError: A message or a tool is none, or any other argument is given.
            MistralCommonException: The template does not allow this order of messages, or what one contains.
        """
        if "add_generation_prompt" in kwargs:
            raise InputError("add_generation_prompt is not supported: a chat always ends where the model answers")
        refuse("apply_chat_template", kwargs)
        if not isinstance(truncation, bool):
            raise TypeError(f"truncation={truncation!r} must be True or False for a chat")
        batched = is_batch(conversation)
        chats = conversation if batched else [conversation]
        ids = [chat_ids(self._tokenizer, chat, tools, continue_final_message) for chat in chats]
        if not tokenize:
            texts = [self.decode(one) for one in ids]
            return texts if batched else texts[0]
        encoding = self(
            ids if batched else ids[0],
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )
        return encoding if return_dict else encoding["input_ids"]

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

        Args:
            pretrained_model_name_or_path: A folder with a `tekken.json`, or else the last `tokenizer.model*` by name;
                a model that brings its own, such as a GGUF file; "owner/name", a repository of the hub, of which only
                the tokenizer is downloaded; or "tiny", the embedded model.
            cache_dir, force_download, local_files_only, token, revision: Of the download.
            mode and others: See the class.

        Raises:
            ValueError: There is no tokenizer, or any other argument is given.
            CheckpointError: The model or the hub cannot be read.
            TokenizerError: The tokenizer is corrupt.
        """
        if init_inputs:
            raise InputError(f"{init_inputs!r:.80}: pass one name or path, and everything else by name")
        refuse("from_pretrained", kwargs)
        source = find(
            pretrained_model_name_or_path,
            revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
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

        Args:
            save_directory: The folder; it is made if need be.
            push_to_hub: Whether to upload the file to the hub as well.
            repo_id, repo_url, organization: Where to: by name, by address, or the folder's name; in an organization.
            token, commit_message, private: See `push_to_hub`.

        Returns:
            The path of the file.
        """
        refuse("save_pretrained", kwargs)
        file = save(self._source, save_directory)
        if push_to_hub:
            name = repo_id or "/".join((repo_url or file.parent.resolve().name).rstrip("/").split("/")[-2:])
            name = f"{organization}/{name.split('/')[-1]}" if organization else name
            upload(file, name, token=token, private=private, commit_message=commit_message)
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
        """Upload the tokenizer's file to a repository of the hub, made if need be, and return the commit's address.

        The arguments are those of `huggingface_hub.HfApi.upload_file`. Raises CheckpointError: no access, no network.
        """
        with TemporaryDirectory() as folder:
            return upload(
                save(self._source, folder),
                repo_id,
                token=token,
                private=private,
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )

    def __repr__(self) -> str:
        return (
            f"MistralCommonTokenizer({self._tokenizer.kind} {self._tokenizer.version}, vocab_size={self.vocab_size}, "
            f"mode={str(self.mode)!r}, padding_side={self.padding_side!r}, truncation_side={self.truncation_side!r})"
        )

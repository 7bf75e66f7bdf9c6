"""PreTrainedTokenizerFast: the tokenizer of a finetune, over Hugging Face's library and the model's chat template."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from mistral_portable.errors import InputError, TokenizerError
from mistral_portable.tokenizer.library import LibraryTokenizer
from mistral_portable.tokenizer.template import ChatTemplate
from mistral_portable.tokenizer.to_folder import write_library
from mistral_portable.transformers.chat import checked_tools
from mistral_portable.transformers.tokenizer_base import refuse_unknown
from mistral_portable.transformers.tokenizer_chats import ChatTokenizer
from mistral_portable.transformers.tokenizer_files import made_folder
from mistral_portable.transformers.vocabulary import LibraryVocabulary

__all__ = ["PreTrainedTokenizerFast"]


class PreTrainedTokenizerFast(ChatTokenizer):
    """A tokenizer with the ids, chats and texts of transformers' class of this name.

    `AutoTokenizer.from_pretrained` makes it, where tokens or the chat template are not Mistral's own. A text that holds
    the name of an added token, such as `<|im_end|>`, has that token.

    tokenizer: the tokenizer that this one is over. Others as in `MistralCommonTokenizer`; names of tokens, such as
    `pad_token`, are None where the files name none.
    """

    def __init__(
        self,
        tokenizer: LibraryTokenizer,
        model_max_length: int = int(1e30),
        padding_side: str = "right",
        truncation_side: str = "right",
        model_input_names: Sequence[str] | None = None,
        clean_up_tokenization_spaces: bool = False,
        **kwargs: Any,
    ) -> None:
        refuse_unknown("this tokenizer", kwargs)
        super().__init__(
            tokenizer,
            LibraryVocabulary(tokenizer),
            model_max_length,
            padding_side,
            truncation_side,
            model_input_names,
            clean_up_tokenization_spaces,
        )
        self._library = tokenizer
        ids = {name: tokenizer.backend.token_to_id(token) for name, token in tokenizer.special_tokens.items()}
        self.bos_token_id = ids.get("bos_token")
        self.eos_token_id = tokenizer.eos_id
        self.unk_token_id = ids.get("unk_token")
        self.pad_token_id = ids.get("pad_token")

    @property
    def backend_tokenizer(self) -> Any:
        """The library's tokenizer."""
        return self._library.backend

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """The chat template, or several by their names; None if there is none."""
        templates = self._library.templates
        return templates.get("default") if templates.keys() <= {"default"} else dict(templates)

    @property
    def vocab_size(self) -> int:
        """The number of tokens without added ones; `len` counts all."""
        return int(self._library.backend.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return self._library.vocab_size

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        bare, framed = self._library.encode("a", bos=False), self._library.encode("a")
        starts = (at for at in range(len(framed)) if framed[at : at + len(bare)] == bare)
        begin = next(starts, 0)
        return framed[:begin], framed[begin + len(bare) :]

    def _text(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._library.decode(ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: Any = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Encode a conversation as the model's template writes it; a list of conversations gives a list.

        documents: mappings with title and text. chat_template: in place of the model's: a Jinja template, or the name
        of one of the model's. add_generation_prompt: whether the text ends where the model answers.
        continue_final_message: whether the last message is the beginning of the answer. tokenize: False returns the
        text. kwargs: more names and values for the template. Others: see
        `MistralCommonTokenizer.apply_chat_template`.

        Raises InputError for malformed messages and tools, without a template, for what the template refuses, and for
        both add_generation_prompt and continue_final_message; TypeError for a `truncation` that is not a bool.
        """
        if add_generation_prompt and continue_final_message:
            raise InputError("add_generation_prompt=True and continue_final_message=True: pass one of them")
        read_tools = None if tools is None else checked_tools(tools)

        def write(chat: Any) -> str:
            return template.render(
                chat,
                read_tools,
                goes_on=continue_final_message,
                asks=add_generation_prompt,
                variables={"documents": documents, **kwargs},
            )

        try:
            template = self._chosen(chat_template)
            return self._chats(
                conversation,
                lambda chat: self._library.encode(write(chat), bos=False),
                write,
                tokenize=tokenize,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                return_tensors=return_tensors,
                return_dict=return_dict,
            )
        except TokenizerError as error:
            raise InputError(str(error)) from error

    def _chosen(self, given: str | None) -> ChatTemplate:
        if given is None:
            return self._library.template
        text = self._library.templates.get(given, given)
        return ChatTemplate({"default": text}, self._library.special_tokens)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> tuple[str, ...]:
        """Write tokenizer.json, tokenizer_config.json and the chat templates into a folder, which is made if needed,
        for `from_pretrained` and transformers; returns their paths.

        Raises InputError if save_directory is a file or for other arguments, OSError if a file cannot be written.
        """
        refuse_unknown("save_pretrained", kwargs)
        return tuple(str(path) for path in write_library(made_folder(save_directory), self._library))

    @property
    def _summary(self) -> str:
        return f"len={len(self)}"

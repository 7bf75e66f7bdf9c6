"""MistralCommonTokenizer: the class of transformers 4.56, over mistral-common."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

from mistral_portable.errors import InputError, TokenizerError
from mistral_portable.tokenizer import GGUFVocabulary, TokenizerFile, load_tokenizer
from mistral_portable.transformers.batch_encoding import BatchEncoding, tensor_kind, to_lists
from mistral_portable.transformers.chat import chat_ids, is_batch
from mistral_portable.transformers.lengths import (
    Lengths,
    TruncationStrategy,
    positive,
    resolve,
    strategy,
    truncate,
)
from mistral_portable.transformers.pretrained import find, save, upload
from mistral_portable.transformers.vocabulary import Vocabulary

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

__all__ = ["MistralCommonTokenizer"]

# What `clean_up_tokenization_spaces` drops the space before, in this order; " ' " loses both.
CLEAN = [(f" {end}", end) for end in ".?!,"] + [(" ' ", "'")]
CLEAN += [(f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")]


class MistralCommonTokenizer:
    """A tokenizer with the methods, defaults and refusals of transformers' class of this name.

    >>> tokenizer = MistralCommonTokenizer.from_pretrained("tiny")
    >>> tokenizer(["Hi", "Hello there"], padding=True, return_tensors="np").input_ids.shape
    (2, 5)

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

    def __init__(
        self,
        tokenizer_path: str | os.PathLike[str] | TokenizerFile | GGUFVocabulary,
        mode: str = "test",
        model_max_length: int = int(1e30),
        padding_side: str = "left",
        truncation_side: str = "right",
        model_input_names: Sequence[str] | None = None,
        clean_up_tokenization_spaces: bool = False,
        **kwargs: Any,
    ) -> None:
        _refuse("MistralCommonTokenizer", kwargs)
        if mode not in ("test", "finetuning"):
            raise InputError(f'mode={mode!r} is neither "test" nor "finetuning"')
        for name, side in (("padding_side", padding_side), ("truncation_side", truncation_side)):
            if side not in ("left", "right"):
                raise InputError(f'{name}={side!r} is neither "left" nor "right"')
        self._source = (
            tokenizer_path
            if isinstance(tokenizer_path, TokenizerFile | GGUFVocabulary)
            else TokenizerFile(Path(tokenizer_path))
        )
        self._tokenizer = load_tokenizer(self._source, "test" if mode == "test" else "finetuning")
        self._vocabulary = Vocabulary(self._tokenizer)
        self.mode = mode
        self.model_max_length = positive("model_max_length", model_max_length)
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.model_input_names = list(model_input_names or ("input_ids", "attention_mask"))
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.bos_token_id = self._tokenizer.bos_id
        self.eos_token_id = self._tokenizer.eos_id
        self.unk_token_id = self._vocabulary.unknown
        self.pad_token_id = self._tokenizer.pad_id

    # The vocabulary

    @property
    def tokenizer(self) -> MistralTokenizer[Any, Any, Any, Any, Any]:
        return self._tokenizer.mistral

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    @cached_property
    def all_special_ids(self) -> list[int]:
        """The ids of all control tokens, ascending."""
        return sorted(self._vocabulary.special)

    @property
    def all_special_tokens(self) -> list[str]:
        return [self._vocabulary.to_piece(id) for id in self.all_special_ids]

    @property
    def bos_token(self) -> str:
        return self._vocabulary.to_piece(self.bos_token_id)

    @property
    def eos_token(self) -> str:
        return self._vocabulary.to_piece(self.eos_token_id)

    @property
    def unk_token(self) -> str:
        return self._vocabulary.to_piece(self.unk_token_id)

    @property
    def pad_token(self) -> str:
        return self._vocabulary.to_piece(self.pad_token_id)

    @pad_token.setter
    def pad_token(self, token: str) -> None:
        self.pad_token_id = self.convert_tokens_to_ids(token)

    def get_vocab(self) -> dict[str, int]:
        """Every token's id. Tokens that are parts of characters look the same, U+FFFD: they share one entry."""
        return dict(self._vocabulary.ids)

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, as a string; a list of them for a list of ids.

        >>> tokenizer.convert_ids_to_tokens([1, 23325])
        ['<s>', '▁Hello']

        Raises:
            ValueError: The only id is special, and to be skipped.
            IndexError: An id is outside the vocabulary.
        """
        listed = to_lists(ids)
        one = not isinstance(listed, list)
        kept = [id for id in ([listed] if one else listed) if not (skip_special_tokens and self._is_special(id))]
        if one and not kept:
            raise InputError(f"token id {ids} is special, and skip_special_tokens=True leaves nothing")
        tokens = [self._vocabulary.to_piece(id) for id in kept]
        return tokens[0] if one else tokens

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, a list of them for a list; with a warning that of `<unk>` where there is no such token."""
        if isinstance(tokens, list | tuple):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        id = self._vocabulary.to_id(tokens)
        if id == self.unk_token_id and tokens != self.unk_token:
            warnings.warn(f"the vocabulary has no token {tokens!r:.80}; it becomes {self.unk_token}", stacklevel=2)
        return id

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """The tokens of a text as strings, with no special ones."""
        _refuse("tokenize", kwargs)
        return [self._vocabulary.to_piece(id) for id in self._ids(text)]

    def add_tokens(self, *_: Any, **__: Any) -> int:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError("no tokens can be added to mistral-common's vocabulary")

    add_special_tokens = add_tokens

    # Encoding

    def encode(
        self,
        text: Any,
        text_pair: None = None,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
        **kwargs: Any,
    ) -> Any:
        """The ids of a text, or of ids: those with `<s>` in front. See `__call__` for the arguments.

        >>> tokenizer.encode("Hello <s>")
        [1, 23325, 1291, 29481, 29535]
        """
        _refuse("encode", kwargs)
        return self(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_tensors=return_tensors,
            verbose=verbose,
        )["input_ids"]

    def __call__(
        self,
        text: Any = None,
        text_pair: None = None,
        text_target: None = None,
        text_pair_target: None = None,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode a text or a batch of texts; a list of ids may stand for each text.

        Args:
            text: One or several texts.
            add_special_tokens: Whether ids begin with `<s>` and, in the mode "finetuning", end with `</s>`.
            padding: True or "longest", "max_length", or False or "do_not_pad".
            truncation: True or "longest_first", or False or "do_not_truncate". None: True if `max_length` is given
                and `padding` is False.
            max_length: Tokens, special ones included, to truncate and pad to.
            stride: How many of the tokens kept are repeated in `overflowing_tokens`.
            pad_to_multiple_of: Padded lengths are rounded up to a multiple of it.
            padding_side: "left" or "right"; the tokenizer's own if None.
            return_tensors: "np" or "pt": arrays of shape [texts, tokens], also for one text; None: lists.
            return_attention_mask: Whether to return 1 for tokens and 0 for padding; by `model_input_names` if None.
            return_overflowing_tokens: Whether to return `overflowing_tokens`, those cut off, and
                `num_truncated_tokens`, where there are any; never as arrays.
            return_special_tokens_mask: Whether to return 1 for special tokens and padding, and 0 for text.
            return_length: Whether to return `length`: of one text with its padding, of texts in a batch without.
            verbose: Whether to warn of arguments without effect, and of texts beyond `model_max_length`.

        Raises:
            ValueError: A pair or a target is given, or any argument is not one of these, or there is no such value.
        """
        _refuse("the call", kwargs)
        for name, pair in (("text_pair", text_pair), ("text_target", text_target), ("", text_pair_target)):
            if pair:
                raise InputError(f"{name or 'text_pair_target'} is not supported; pass one text, or a list of texts")
        lengths = self._lengths(padding, truncation, max_length, pad_to_multiple_of, padding_side, verbose)
        overflow = return_overflowing_tokens and not return_tensors
        options = (lengths, add_special_tokens, stride, overflow, return_special_tokens_mask, verbose)
        batched = isinstance(text, list | tuple) and (not text or isinstance(text[0], str | list | tuple))
        if not batched:
            row = self._row(self._ids(text), *options)
            return self._one(row, lengths, return_attention_mask, return_length, return_tensors, True)
        if not text:
            raise InputError("the batch of texts is empty; pass at least one")
        rows = [self._row(self._ids(part), *options) for part in text]
        if any("overflowing_tokens" in row for row in rows):
            rows = [{"overflowing_tokens": [0], "num_truncated_tokens": [0]} | row for row in rows]
        if return_length:
            rows = [row | {"length": len(row["input_ids"])} for row in rows]
        return BatchEncoding(self._padded(rows, lengths, return_attention_mask), return_tensors)

    def prepare_for_model(
        self,
        ids: Sequence[int],
        pair_ids: None = None,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        prepend_batch_axis: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Add special tokens to ids, truncate and pad them; see `__call__` for the arguments.

        >>> tokenizer.prepare_for_model([5, 6, 7], max_length=3, return_overflowing_tokens=True)
        {'input_ids': [1, 5, 6], 'overflowing_tokens': [7], 'num_truncated_tokens': 1, 'attention_mask': [1, 1, 1]}

        `prepend_batch_axis` gives arrays the shape [1, tokens] in place of [tokens].
        """
        _refuse("prepare_for_model", kwargs)
        _no_pair("pair_ids", pair_ids)
        lengths = self._lengths(padding, truncation, max_length, pad_to_multiple_of, padding_side, verbose)
        overflow = return_overflowing_tokens and not return_tensors
        listed = self._checked(to_lists(ids))
        row = self._row(listed, lengths, add_special_tokens, stride, overflow, return_special_tokens_mask, verbose)
        return self._one(row, lengths, return_attention_mask, return_length, return_tensors, prepend_batch_axis)

    def pad(
        self,
        encoded_inputs: Any,
        padding: Any = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad encoded texts; see `__call__` for the arguments.

        Args:
            encoded_inputs: What calls return: of one text, of a batch, or a list of those of single texts. Arrays are
                as good as lists, and come back as arrays unless `return_tensors` says otherwise.

        Returns:
            A new encoding: ids are padded with `pad_token_id`, attention masks with 0, special tokens' masks with 1.
            The ids of one text that has none stay empty.

        Raises:
            ValueError: There are no ids, or not as many of them as of something else.
        """
        if isinstance(encoded_inputs, list | tuple) and encoded_inputs and isinstance(encoded_inputs[0], Mapping):
            encoded_inputs = {name: [one[name] for one in encoded_inputs] for name in encoded_inputs[0]}
        main = self.model_input_names[0]
        if not isinstance(encoded_inputs, Mapping) or main not in encoded_inputs:
            raise InputError(f"there is no {main} in {encoded_inputs!r:.80}; pass what the tokenizer returned")
        return_tensors = return_tensors or tensor_kind(encoded_inputs[main])
        inputs = {name: to_lists(value) for name, value in encoded_inputs.items()}
        lengths = self._lengths(padding, False, max_length, pad_to_multiple_of, padding_side, verbose)
        if not inputs[main]:
            return BatchEncoding(inputs | ({"attention_mask": []} if return_attention_mask else {}), return_tensors)
        if not isinstance(inputs[main][0], list):
            self._checked(inputs[main])
            padded = self._filled(inputs, lengths, lengths.padded(len(inputs[main])), return_attention_mask)
            return BatchEncoding(padded, return_tensors)
        count = len(inputs[main])
        for name, values in inputs.items():
            if not isinstance(values, list) or len(values) != count:
                raise InputError(f"there are {count} rows of {main}, but not of {name}; pass one row for each text")
        rows = [{name: values[index] for name, values in inputs.items()} for index in range(count)]
        for row in rows:
            self._checked(row[main])
        return BatchEncoding(self._padded(rows, lengths, return_attention_mask), return_tensors)

    def truncate_sequences(
        self,
        ids: Sequence[int],
        pair_ids: None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: Any = "longest_first",
        stride: int = 0,
        **kwargs: Any,
    ) -> tuple[list[int], None, list[int]]:
        """Cut ids at `truncation_side`: what is left, None, and what was cut with `stride` neighbours more.

        >>> tokenizer.truncate_sequences([1, 2, 3, 4, 5], num_tokens_to_remove=2, stride=1)
        ([1, 2, 3], None, [3, 4, 5])

        Raises:
            ValueError: A pair is given, or `truncation_strategy` is none for one text.
        """
        _refuse("truncate_sequences", kwargs)
        _no_pair("pair_ids", pair_ids)
        listed = self._checked(to_lists(ids))
        how = strategy("truncation_strategy", TruncationStrategy, truncation_strategy)
        if how in (TruncationStrategy.ONLY_FIRST, TruncationStrategy.ONLY_SECOND):
            raise InputError(f"truncation_strategy={how.value!r} is for pairs of texts, which are not supported")
        if how is TruncationStrategy.DO_NOT_TRUNCATE or num_tokens_to_remove <= 0:
            return listed, None, []
        kept, cut = truncate(listed, num_tokens_to_remove, self.truncation_side, positive("stride", stride, 0))
        return kept, None, cut

    def get_special_tokens_mask(
        self, token_ids_0: Sequence[int], token_ids_1: None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for every special token and 0 for others, of ids that have special tokens or that will get them.

        >>> tokenizer.get_special_tokens_mask([23325, 1291])
        [1, 0, 0]
        """
        _no_pair("token_ids_1", token_ids_1)
        if already_has_special_tokens:
            return [int(self._is_special(id)) for id in to_lists(token_ids_0)]
        return [1, *[0] * len(token_ids_0), *[1] * (self.mode == "finetuning")]

    # Chats

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

        >>> tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
        [1, 3, 16127, 4]

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
        _refuse("apply_chat_template", kwargs)
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

    # Decoding

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The text of ids, or of one id; of a batch of ids, a list.

        With special tokens, sentencepiece's tokens come out as they are:

        >>> tokenizer.decode([1, 23325, 2294]), tokenizer.decode([1, 23325, 2294], skip_special_tokens=True)
        ('<s>▁Hello▁world', 'Hello world')

        Raises:
            TypeError, IndexError: An id is no integer, or outside the vocabulary.
        """
        _refuse("decode", kwargs)
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

        ids = to_lists(token_ids)
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean) for row in ids]
        policy = SpecialTokenPolicy.IGNORE if skip_special_tokens else SpecialTokenPolicy.KEEP
        checked = [self._vocabulary.checked(id) for id in (ids if isinstance(ids, list) else [ids])]
        text = self.tokenizer.decode(checked, policy)
        for spaced, without in CLEAN if clean else ():
            text = text.replace(spaced, without)
        return text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """The texts of several lists of ids; a single list is a batch of one. See `decode`."""
        _refuse("batch_decode", kwargs)
        ids = to_lists(sequences)
        rows = ids if isinstance(ids, list) and (not ids or isinstance(ids[0], list)) else [ids]
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in rows]

    # Files

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
        _refuse("from_pretrained", kwargs)
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
        _refuse("save_pretrained", kwargs)
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

    # What the methods share

    def _is_special(self, id: int) -> bool:
        return self._vocabulary.checked(id) in self._vocabulary.special

    def _checked(self, ids: Any) -> list[int]:
        """The ids, if they are a list of ids of the vocabulary."""
        if not isinstance(ids, list):
            raise InputError(f"{ids!r:.80} is no list of token ids")
        return [self._vocabulary.checked(id) for id in ids]

    def _ids(self, text: Any) -> list[int]:
        """The ids of a text, without special tokens; or the ids that stand for it."""
        if isinstance(text, str):
            try:
                return self._tokenizer.encode(text, bos=False)
            except TokenizerError as error:
                raise InputError(str(error)) from error
        if isinstance(text, list | tuple) and text and not isinstance(text[0], str | list | tuple):
            return self._checked(list(text))
        raise InputError(f"{text!r:.80} is no text; pass a string, or a list of token ids")

    def _lengths(
        self,
        padding: Any,
        truncation: Any,
        max_length: int | None,
        multiple: int | None,
        side: str | None,
        verbose: bool,
    ) -> Lengths:
        side = self.padding_side if side is None else side
        return resolve(padding, truncation, max_length, multiple, side, self.model_max_length, verbose)

    def _row(
        self,
        ids: list[int],
        lengths: Lengths,
        add_special_tokens: bool,
        stride: int,
        overflow: bool,
        special_mask: bool,
        verbose: bool,
    ) -> dict[str, Any]:
        """One text: cut, and with its special tokens, for which room is kept."""
        end = [self.eos_token_id] if self.mode == "finetuning" else []
        total = len(ids) + (1 + len(end) if add_special_tokens else 0)
        cut: list[int] = []
        stride = positive("stride", stride, 0)
        if lengths.truncates and lengths.max_length and total > lengths.max_length:
            ids, cut = truncate(ids, total - lengths.max_length, self.truncation_side, stride)
        row: dict[str, Any] = {"input_ids": [self.bos_token_id, *ids, *end] if add_special_tokens else ids}
        if special_mask:
            row["special_tokens_mask"] = self.get_special_tokens_mask(ids) if add_special_tokens else [0] * len(ids)
        if overflow and cut and lengths.max_length:
            row |= {"overflowing_tokens": cut, "num_truncated_tokens": total - lengths.max_length}
        if verbose and lengths.max_length is None and total > self.model_max_length:
            limit = self.model_max_length
            warnings.warn(f"the text has {total} tokens, more than model_max_length={limit}; truncate it", stacklevel=3)
        return row

    def _one(
        self,
        row: dict[str, Any],
        lengths: Lengths,
        attention_mask: bool | None,
        length: bool,
        tensors: str | None,
        prepend_batch_axis: bool,
    ) -> BatchEncoding:
        ids = row["input_ids"]
        row = self._filled(row, lengths, lengths.padded(len(ids)) if ids else 0, attention_mask)
        if length:
            row["length"] = len(row["input_ids"])
        return BatchEncoding(row, tensors, prepend_batch_axis)

    def _padded(
        self, rows: list[dict[str, Any]], lengths: Lengths, attention_mask: bool | None
    ) -> dict[str, list[Any]]:
        """The rows, as long as the longest of them or as the limit says, as one dictionary of lists."""
        length = lengths.padded(max(len(row[self.model_input_names[0]]) for row in rows))
        filled = [self._filled(row, lengths, length, attention_mask) for row in rows]
        return {name: [row[name] for row in filled] for name in filled[0]}

    def _filled(
        self, row: dict[str, Any], lengths: Lengths, length: int, attention_mask: bool | None
    ) -> dict[str, Any]:
        main = self.model_input_names[0]
        wanted = "attention_mask" in self.model_input_names if attention_mask is None else attention_mask
        if wanted and "attention_mask" not in row:
            row = row | {"attention_mask": [1] * len(row[main])}
        fillers = {main: self.pad_token_id, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
        return {
            name: lengths.fill(value, length, fillers[name]) if name in fillers else value
            for name, value in row.items()
        }


def _refuse(method: str, kwargs: Mapping[str, Any]) -> None:
    if kwargs:
        raise InputError(f"{method} has no argument {', '.join(kwargs)}; see the documentation for those it has")


def _no_pair(name: str, value: Any) -> None:
    if value is not None:
        raise InputError(f"{name} is not supported: there are no pairs of texts; leave it out")

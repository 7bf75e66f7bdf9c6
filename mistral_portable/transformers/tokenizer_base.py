"""TokenizerBase: the vocabulary and the decoding of a tokenizer."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from mistral_portable.errors import InputError
from mistral_portable.tokenizer import Tokenizer
from mistral_portable.transformers.batch_encoding import to_lists
from mistral_portable.transformers.padding import checked_integer
from mistral_portable.transformers.vocabulary import Vocabulary

__all__ = ["TokenizerBase", "refuse_unknown"]

# `clean_up_tokenization_spaces` replaces these in order; " ' " loses both spaces.
CLEAN = [(f" {end}", end) for end in ".?!,"] + [(" ' ", "'")]
CLEAN += [(f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")]


class TokenizerBase(ABC):
    """The vocabulary, special tokens and decoding of the documented tokenizers.

    tokenizer: the tokenizer that this one is over. vocabulary: its tokens as strings. Others: see the classes.
    """

    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None
    pad_token_id: int | None

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        model_max_length: int,
        padding_side: str,
        truncation_side: str,
        model_input_names: Sequence[str] | None,
        clean_up_tokenization_spaces: bool,
    ) -> None:
        for name, side in (("padding_side", padding_side), ("truncation_side", truncation_side)):
            if side not in ("left", "right"):
                raise InputError(f'{name}={side!r} is neither "left" nor "right"')
        if isinstance(model_input_names, str):
            raise InputError(f"model_input_names={model_input_names!r} is one name; pass a list of names")
        self._tokenizer: Tokenizer = tokenizer
        self._vocabulary: Vocabulary = vocabulary
        self.model_max_length = checked_integer("model_max_length", model_max_length)
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.model_input_names = list(model_input_names or ("input_ids", "attention_mask"))
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces

    @property
    @abstractmethod
    def _frame(self) -> tuple[list[int], list[int]]:
        """The special tokens before a text, and those behind it."""

    @abstractmethod
    def _text(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of ids of the vocabulary."""

    @property
    @abstractmethod
    def _summary(self) -> str:
        """Words of `repr` that tell the tokenizer from others of its class."""

    def __repr__(self) -> str:
        sides = f"padding_side={self.padding_side!r}, truncation_side={self.truncation_side!r}"
        return f"{type(self).__name__}({self._summary}, {sides})"

    @property
    def vocab_size(self) -> int:
        """The number of tokens, control tokens included."""
        return self._tokenizer.vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    @cached_property
    def all_special_ids(self) -> list[int]:
        """The ids of all control tokens, ascending."""
        return sorted(self._vocabulary.special)

    @property
    def all_special_tokens(self) -> list[str]:
        """All control tokens as strings, in order of their ids."""
        return [self._vocabulary.to_piece(id) for id in self.all_special_ids]

    @property
    def bos_token(self) -> str | None:
        """The token of `bos_token_id` as a string; None if there is none."""
        return self._named(self.bos_token_id)

    @property
    def eos_token(self) -> str | None:
        """The token of `eos_token_id` as a string; None if there is none."""
        return self._named(self.eos_token_id)

    @property
    def unk_token(self) -> str | None:
        """The token of `unk_token_id` as a string; None if there is none."""
        return self._named(self.unk_token_id)

    @property
    def pad_token(self) -> str | None:
        """The token of `pad_token_id` as a string, which may be set; None if there is none."""
        return self._named(self.pad_token_id)

    @pad_token.setter
    def pad_token(self, token: str | None) -> None:
        self.pad_token_id = None if token is None else self.convert_tokens_to_ids(token)

    def _named(self, id: int | None) -> str | None:
        return None if id is None else self._vocabulary.to_piece(id)

    def get_vocab(self) -> dict[str, int]:
        """Ids by token. Tokens that are parts of characters all read U+FFFD and share one entry."""
        return dict(self._vocabulary.ids)

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Convert an id to its token, or a list of ids to a list of tokens.

        >>> tokenizer.convert_ids_to_tokens([1, 867])
        ['<s>', '▁Hello']

        Raises IndexError for an id outside the vocabulary, TypeError for anything but integers, and InputError if the
        only id is special and skipped.
        """
        listed = to_lists(ids)
        one = not isinstance(listed, list)
        kept = [id for id in ([listed] if one else listed) if not (skip_special_tokens and self._is_special(id))]
        if one and not kept:
            raise InputError(f"token id {ids} is special, and skip_special_tokens=True leaves nothing")
        tokens = [self._vocabulary.to_piece(id) for id in kept]
        return tokens[0] if one else tokens

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Convert a token to its id, or a list to a list; an unknown token becomes `<unk>` (None where there is none),
        with a warning."""
        if isinstance(tokens, list | tuple):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        id = self._vocabulary.to_id(tokens)
        if id == self.unk_token_id and tokens != self.unk_token:
            warnings.warn(f"the vocabulary has no token {tokens!r:.80}; it becomes {self.unk_token}", stacklevel=2)
        return id

    def add_tokens(self, *_: Any, **__: Any) -> int:
        """Raise NotImplementedError: the vocabulary is fixed."""
        raise NotImplementedError("no tokens can be added to the vocabulary: the model has no rows for them")

    add_special_tokens = add_tokens

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Convert ids to text; a batch of ids gives a list of texts.

        Unless special tokens are skipped, mistral-common spells sentencepiece's tokens as in the vocabulary:

        >>> tokenizer.decode([1, 547, 550]), tokenizer.decode([1, 547, 550], skip_special_tokens=True)
        ('<s>▁Once▁upon', 'Once upon')

        Raises TypeError for anything but integers, IndexError for an id outside the vocabulary.
        """
        refuse_unknown("decode", kwargs)
        ids = to_lists(token_ids)
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean) for row in ids]
        checked = [self._vocabulary.checked(id) for id in (ids if isinstance(ids, list) else [ids])]
        text = self._text(checked, skip_special_tokens)
        for spaced, without in CLEAN if clean else ():
            text = text.replace(spaced, without)
        return text

    def decode_after(self, prompt: Sequence[int], token_ids: Sequence[int]) -> str:
        """The text, without special tokens, of ids that follow a prompt's; its first space counts unless they begin a
        text, such as an answer behind [/INST]."""
        stream = self._tokenizer.stream(prompt)
        return "".join([*map(stream.push, token_ids), stream.flush()])

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Convert lists of ids to texts; a single list is a batch of one. Arguments and errors as in `decode`."""
        refuse_unknown("batch_decode", kwargs)
        ids = to_lists(sequences)
        rows = ids if isinstance(ids, list) and (not ids or isinstance(ids[0], list)) else [ids]
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in rows]

    def _is_special(self, id: int) -> bool:
        return self._vocabulary.checked(id) in self._vocabulary.special


def refuse_unknown(method: str, kwargs: Mapping[str, Any]) -> None:
    """Raise InputError, naming them, if there are arguments that a method does not have."""
    if kwargs:
        raise InputError(f"{method} has no argument {', '.join(kwargs)}; see the documentation for those it has")

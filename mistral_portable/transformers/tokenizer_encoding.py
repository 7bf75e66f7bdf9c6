"""EncodingTokenizer: ids from text, with special tokens, truncation and padding."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mistral_portable.errors import InputError, TokenizerError
from mistral_portable.transformers.batch_encoding import BatchEncoding, tensor_kind, to_lists
from mistral_portable.transformers.padding import (
    Lengths,
    TruncationStrategy,
    checked_integer,
    resolve_lengths,
    to_strategy,
    truncate,
)
from mistral_portable.transformers.tokenizer_base import TokenizerBase, refuse_unknown

__all__ = ["EncodingTokenizer"]


class EncodingTokenizer(TokenizerBase):
    """The encoding of the documented tokenizers."""

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Split a text into tokens, as strings, without special tokens."""
        refuse_unknown("tokenize", kwargs)
        return [self._vocabulary.to_piece(id) for id in self._ids(text)]

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
        """Encode a text; a list of ids may stand for it. Arguments and errors as in `__call__`.

        >>> tokenizer.encode("Once <s>")
        [1, 547, 929, 1002, 941, 1004]
        """
        refuse_unknown("encode", kwargs)
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

        text: one or several texts.
        add_special_tokens: whether ids begin with `<s>` and, in the mode "finetuning", end with `</s>`; for a finetune
        as its files say.
        padding: True or "longest"; "max_length"; False or "do_not_pad".
        truncation: True or "longest_first"; False or "do_not_truncate"; None: True if `max_length` is given and
        `padding` is False.
        max_length: tokens, special ones included, to truncate and pad to.
        stride: the number of kept tokens that `overflowing_tokens` repeats.
        pad_to_multiple_of: padded lengths are rounded up to a multiple of it.
        padding_side: "left" or "right"; None: the tokenizer's own.
        return_tensors: "np", "pt", "jax" or "tf": arrays [texts, tokens], also for one text; None: lists.
        return_attention_mask: whether to return 1 for tokens and 0 for padding; None: if `model_input_names` lists it.
        return_overflowing_tokens: whether to return the tokens that were cut off, `overflowing_tokens`, and
        `num_truncated_tokens`, if there are any; never as arrays.
        return_special_tokens_mask: whether to return 1 for special tokens and padding, and 0 for text.
        return_length: whether to return `length`: with padding for one text, without padding for texts of a batch.
        verbose: whether to warn of arguments without effect and of texts longer than `model_max_length`.

        Raises InputError for a pair, a target, an unknown argument and a value out of its range; TypeError and
        IndexError for ids that are not integers or not in the vocabulary.
        """
        refuse_unknown("the call", kwargs)
        pairs = {"text_pair": text_pair, "text_target": text_target, "text_pair_target": text_pair_target}
        for name in [name for name, value in pairs.items() if value]:
            raise InputError(f"{name} is not supported; pass one text, or a list of texts")
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
            nothing = {"overflowing_tokens": [0], "num_truncated_tokens": [0]}  # transformers' placeholder
            rows = [row if "overflowing_tokens" in row else row | nothing for row in rows]
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
        """Add special tokens to ids, truncate and pad them. Arguments and errors as in `__call__`.

        >>> tokenizer.prepare_for_model([5, 6, 7], max_length=3, return_overflowing_tokens=True)
        {'input_ids': [1, 5, 6], 'overflowing_tokens': [7], 'num_truncated_tokens': 1, 'attention_mask': [1, 1, 1]}

        prepend_batch_axis: arrays have the shape [1, tokens] instead of [tokens].
        """
        refuse_unknown("prepare_for_model", kwargs)
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
        """Pad encoded texts: a new encoding, with ids padded by `pad_token_id`, attention masks by 0, special tokens'
        masks by 1. Other arguments as in `__call__`.

        encoded_inputs: the result of a call for one text or a batch, or a list of results for single texts. Arrays are
        returned as arrays of the same library unless `return_tensors` says otherwise. One text without ids stays empty.

        Raises InputError if there are no ids, or another entry does not have as many rows or numbers as they have.
        """
        if isinstance(encoded_inputs, list | tuple):
            encoded_inputs = _joined(encoded_inputs)
        if not isinstance(encoded_inputs, Mapping) or "input_ids" not in encoded_inputs:
            raise InputError(f"there is no input_ids in {encoded_inputs!r:.80}; pass what the tokenizer returned")
        return_tensors = return_tensors or tensor_kind(encoded_inputs["input_ids"])
        inputs = {name: to_lists(value) for name, value in encoded_inputs.items()}
        lengths = self._lengths(padding, False, max_length, pad_to_multiple_of, padding_side, verbose)
        if inputs["input_ids"] == []:
            return BatchEncoding(inputs | ({"attention_mask": []} if return_attention_mask else {}), return_tensors)
        if not (isinstance(inputs["input_ids"], list) and isinstance(inputs["input_ids"][0], list)):
            self._checked(inputs["input_ids"])
            padded = self._filled(inputs, lengths, lengths.padded(len(inputs["input_ids"])), return_attention_mask)
            return BatchEncoding(padded, return_tensors)
        count = len(inputs["input_ids"])
        for name, values in inputs.items():
            if not isinstance(values, list) or len(values) != count:
                raise InputError(f"there are {count} rows of input_ids, but not of {name}; pass one row for each text")
        rows = [{name: values[index] for name, values in inputs.items()} for index in range(count)]
        for row in rows:
            self._checked(row["input_ids"])
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
        """Cut ids at `truncation_side`: the ids that are left, None, and those cut with `stride` neighbours more.

        >>> tokenizer.truncate_sequences([1, 2, 3, 4, 5], num_tokens_to_remove=2, stride=1)
        ([1, 2, 3], None, [3, 4, 5])

        Raises InputError for a pair, and for a `truncation_strategy` that is unknown or for pairs.
        """
        refuse_unknown("truncate_sequences", kwargs)
        _no_pair("pair_ids", pair_ids)
        listed = self._checked(to_lists(ids))
        how = to_strategy("truncation_strategy", TruncationStrategy, truncation_strategy)
        if how in (TruncationStrategy.ONLY_FIRST, TruncationStrategy.ONLY_SECOND):
            raise InputError(f"truncation_strategy={how.value!r} is for pairs of texts, which are not supported")
        if how is TruncationStrategy.DO_NOT_TRUNCATE or num_tokens_to_remove <= 0:
            return listed, None, []
        kept, cut = truncate(listed, num_tokens_to_remove, self.truncation_side, checked_integer("stride", stride, 0))
        return kept, None, cut

    def get_special_tokens_mask(
        self, token_ids_0: Sequence[int], token_ids_1: None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """A mask with 1 for special tokens and 0 for others.

        already_has_special_tokens: whether the ids contain them; else the mask is for the ids with those added.

        >>> tokenizer.get_special_tokens_mask([547, 550])
        [1, 0, 0]
        """
        _no_pair("token_ids_1", token_ids_1)
        if already_has_special_tokens:
            return [int(id in self._vocabulary.special) for id in self._checked(to_lists(token_ids_0))]
        before, after = self._frame
        return [*[1] * len(before), *[0] * len(token_ids_0), *[1] * len(after)]

    def _checked(self, ids: Any) -> list[int]:
        """The ids, if they are a list of ids in the vocabulary. Raises InputError, TypeError or IndexError."""
        if not isinstance(ids, list):
            raise InputError(f"{ids!r:.80} is no list of token ids")
        return [self._vocabulary.checked(id) for id in ids]

    def _ids(self, text: Any) -> list[int]:
        """The ids of a text without special tokens, or the ids that stand for the text."""
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
        return resolve_lengths(padding, truncation, max_length, multiple, side, self.model_max_length, verbose)

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
        """Encode one text without padding: truncated so that the special tokens fit, then with them."""
        before, after = self._frame if add_special_tokens else ([], [])
        total = len(before) + len(ids) + len(after)
        cut: list[int] = []
        stride = checked_integer("stride", stride, 0)
        if lengths.truncates and lengths.max_length and total > lengths.max_length:
            ids, cut = truncate(ids, total - lengths.max_length, self.truncation_side, stride)
        row: dict[str, Any] = {"input_ids": [*before, *ids, *after]}
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
        """Pad the rows to the length of the longest one, or to the limit: one dictionary of lists."""
        length = lengths.padded(max(len(row["input_ids"]) for row in rows))
        filled = [self._filled(row, lengths, length, attention_mask) for row in rows]
        return {name: [row[name] for row in filled] for name in filled[0]}

    def _filled(
        self, row: dict[str, Any], lengths: Lengths, length: int, attention_mask: bool | None
    ) -> dict[str, Any]:
        wanted = "attention_mask" in self.model_input_names if attention_mask is None else attention_mask
        if wanted and "attention_mask" not in row:
            row = row | {"attention_mask": [1] * len(row["input_ids"])}
        pad = self.pad_token_id
        if pad is None:
            if length > len(row["input_ids"]):
                raise InputError("the tokenizer has no padding token; set pad_token, for example to eos_token")
            pad = 0
        fillers = {"input_ids": pad, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
        for name in fillers.keys() & row.keys():
            if not isinstance(row[name], list) or len(row[name]) != len(row["input_ids"]):
                raise InputError(f"{name}={row[name]!r:.80} is not as long as its input_ids; pass one number for each")
        return {
            name: lengths.fill(value, length, fillers[name]) if name in fillers else value
            for name, value in row.items()
        }


def _joined(encodings: Sequence[Any]) -> dict[str, list[Any]]:
    """Join encodings of single texts to one of a batch. Raises InputError if their entries differ."""
    for encoding in encodings:
        if not isinstance(encoding, Mapping) or encoding.keys() != encodings[0].keys():
            raise InputError(f"{encoding!r:.80} does not have the entries of the first encoding")
    return {name: [encoding[name] for encoding in encodings] for name in (encodings[0] if encodings else ())}


def _no_pair(name: str, value: Any) -> None:
    if value is not None:
        raise InputError(f"{name} is not supported: there are no pairs of texts; leave it out")

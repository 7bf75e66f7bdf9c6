"""merge(): makes one checkpoint of a checkpoint and adapters."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mistral_portable.adapters.adapter import Adapter, LowRank
from mistral_portable.adapters.merged import MergedTensor
from mistral_portable.adapters.pieces import HEAD, TABLE
from mistral_portable.errors import CheckpointError, InputError
from mistral_portable.tokenizer.folder import read_templates
from mistral_portable.weights import Checkpoint, Tensor
from mistral_portable.weights.safetensors import tokenizer_in
from mistral_portable.weights.source import FLOATS
from mistral_portable.weights.stored_head import same_values

__all__ = ["merge"]


def merge(
    checkpoint: Checkpoint, adapters: Sequence[tuple[Adapter, float]], *, unpack: bool = False
) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint with the changes of adapters in its weights, lazily, and notices for the user.

    adapters: each with a factor for its low-rank changes; those of several are summed. Tables that are saved whole
    replace the model's, whatever the factor; with another number of rows they set `vocab_size`, and the tokenizer files
    of the adapter's folder are taken. An embedding table and a head that were tied and differ are untied.
    unpack: whether weights that are packed may be unpacked.

    Raises InputError for packed weights, for adapters that replace a table by different ones, and for tables that do
    not fit; CheckpointError if a weight is missing in the checkpoint.
    """
    tensors: dict[str, Tensor] = dict(checkpoint.tensors)
    config, source = checkpoint.config, checkpoint.path
    tied = config.tie_word_embeddings
    if tied and HEAD not in tensors and TABLE in tensors:
        tensors[HEAD] = replace(tensors[TABLE], name=HEAD)  # type: ignore[type-var]  # all tensors are dataclasses
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    grown = _replace_tables(tensors, adapters, config.vocab_size, tied)
    replaced = {name for adapter, _ in adapters for name in adapter.whole}
    changes = _changes(tensors, adapters)
    rows = {tensors[name].shape[0] for name in (TABLE, HEAD) if name in tensors}
    if len(rows) > 1:
        raise InputError(
            f"{source}: with the adapter the embedding table has {tensors[TABLE].shape[0]} rows and lm_head "
            f"{tensors[HEAD].shape[0]}: save both in the adapter (modules_to_save)"
        )
    config = replace(config, vocab_size=rows.pop()) if rows else config
    notices: list[str] = []
    if tied:
        same = not replaced or same_values(tensors[TABLE], tensors[HEAD])
        if same and _changed_alike(changes):
            tensors.pop(HEAD, None)
            changes.pop(HEAD, None)
        else:
            config = replace(config, tie_word_embeddings=False)
            notices.append("the adapter changes the tied embedding table and head differently: they are written apart.")
    for name in (changes.keys() | replaced) & tensors.keys():
        tensors[name] = _merged(name, dtypes.get(name), tensors[name], changes.get(name, ()), unpack)
    merged = replace(checkpoint, config=config, tensors=tensors)
    if grown is None:
        return merged, (*notices, *_unused_templates(checkpoint, adapters))
    folder = _folder(grown)
    tokenizer = tokenizer_in(folder)
    if tokenizer is None:
        notices.append(f"{grown.path} changes the vocabulary and has no tokenizer files: its tokens have no text.")
        return merged, tuple(notices)
    notices.append(f"the tokenizer files of {folder} are taken, as the adapter changes the vocabulary.")
    return replace(merged, tokenizer=tokenizer, beside=folder), tuple(notices)


def _replace_tables(
    tensors: dict[str, Tensor], adapters: Sequence[tuple[Adapter, float]], vocab_size: int, tied: bool
) -> Adapter | None:
    """Put the tables that are saved whole in their places; returns the adapter that changes the number of rows."""
    grown, replaced = None, set[str]()
    for adapter, _ in adapters:
        for name, tensor in adapter.whole.items():
            if name in replaced and not same_values(tensors[name], tensor):
                raise InputError(
                    f"{adapter.path}: a second adapter that replaces {name}, by other values; merge one of them"
                )
            replaced.add(name)
            tensors[name] = replace(tensor, name=name)
            if tensor.shape[0] != vocab_size:
                grown = adapter
                if tied and name == TABLE and HEAD not in adapter.whole:
                    tensors[HEAD] = replace(tensor, name=HEAD)  # no other head fits
    return grown


def _changes(tensors: dict[str, Tensor], adapters: Sequence[tuple[Adapter, float]]) -> dict[str, tuple[LowRank, ...]]:
    """The changes of each weight, all as those of linear layers, times the factors of their adapters."""
    changes: dict[str, tuple[LowRank, ...]] = {}
    for adapter, factor in adapters:
        for name, stored in adapter.low_rank.items():
            if name not in tensors:
                raise CheckpointError(f"{adapter.path}: the model has no {name}; download the model again")
            change = stored.transposed() if name == TABLE else stored
            shape = change.up.shape[0], change.down.shape[1]
            if shape != tensors[name].shape:
                raise InputError(
                    f"{adapter.path}: its change of {name} has the shape {shape}, the weight {tensors[name].shape}: "
                    "another adapter changes the vocabulary; merge one of them"
                )
            changes[name] = *changes.get(name, ()), change.scaled(factor)
    return changes


def _merged(name: str, dtype: str | None, tensor: Tensor, changes: tuple[LowRank, ...], unpack: bool) -> Tensor:
    if changes and tensor.dtype not in FLOATS and not unpack:
        raise InputError(
            f"{name} is packed ({tensor.dtype}), and adapters are merged into floats: take the original model, or "
            "let it be unpacked with --dtype bfloat16 (dtype='bfloat16')"
        )
    own = dtype if dtype in FLOATS else tensor.dtype  # a table takes the float type of the one that it replaces
    return tensor if not changes and own == tensor.dtype else MergedTensor(name, own, tensor, changes)


def _changed_alike(changes: dict[str, tuple[LowRank, ...]]) -> bool:
    """Whether the embedding table and the head have the same changes."""
    table, head = changes.get(TABLE, ()), changes.get(HEAD, ())
    return len(table) == len(head) and all(_same(one, other) for one, other in zip(table, head, strict=True))


def _same(one: LowRank, other: LowRank) -> bool:
    return (
        one.scale == other.scale
        and np.array_equal(one.up.numpy(), other.up.numpy())
        and np.array_equal(one.down.numpy(), other.down.numpy())
    )


def _folder(adapter: Adapter) -> Path:
    return adapter.path if adapter.path.is_dir() else adapter.path.parent


def _unused_templates(checkpoint: Checkpoint, adapters: Sequence[tuple[Adapter, float]]) -> list[str]:
    """Notices of chat templates in adapters' folders, which are not the model's."""
    own = read_templates(checkpoint.path) if checkpoint.path.is_dir() else {}
    return [
        f"{_folder(adapter)} has a chat template, which is not taken, as the vocabulary is the model's; chats have it "
        "with --chat-template FILE."
        for adapter, _ in adapters
        if (found := read_templates(_folder(adapter))) and found != own
    ]

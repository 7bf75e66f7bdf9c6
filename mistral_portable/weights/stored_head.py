"""Which matrix makes the logits, where the config says that it is the embedding table's, and the file has two."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from mistral_portable.config import MistralConfig
from mistral_portable.weights.source import DenseTensor, Tensor

__all__ = ["same_values", "stored_head"]

_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ROWS = 256  # compared at a time: 2 MiB of a model's 4096 columns

_Stored = TypeVar("_Stored", bound=Tensor)


def stored_head(
    config: MistralConfig, tensors: Mapping[str, _Stored], source: str
) -> tuple[MistralConfig, dict[str, _Stored], tuple[str, ...]]:
    """The config and tensors of a model with `tie_word_embeddings`, made to agree, and notices; others as they are.

    A head with other values than the table is used, and `tie_word_embeddings` becomes false, with a notice; the same
    values are one tensor. A head without a table is the table, too. So does transformers 5 (`tie_weights`).
    """
    head = tensors.get(_HEAD)
    if not config.tie_word_embeddings or head is None:
        return config, dict(tensors), ()
    table = tensors.get(_TABLE)
    others = {name: tensor for name, tensor in tensors.items() if name != _HEAD}
    if table is None:
        return config, {**others, _TABLE: replace(head, name=_TABLE)}, ()  # type: ignore[type-var]  # all are dataclasses
    if same_values(table, head):
        return config, others, ()
    return (
        replace(config, tie_word_embeddings=False),
        dict(tensors),
        (
            f"{source}: the config says tie_word_embeddings, but an lm_head.weight with other values is stored; it is "
            "used, as transformers does. Set tie_word_embeddings to false.",
        ),
    )


def same_values(table: Tensor, head: Tensor) -> bool:
    """Whether both are stored floats with the same values, compared up to the first rows that differ."""
    if not isinstance(table, DenseTensor) or not isinstance(head, DenseTensor) or table.shape != head.shape:
        return False
    if table.array.ctypes.data == head.array.ctypes.data and table.dtype == head.dtype:
        return True  # torch files store what is tied once
    parts = (slice(begin, begin + _ROWS) for begin in range(0, len(table.array), _ROWS))
    return all((table.rows(part).numpy() == head.rows(part).numpy()).all() for part in parts)

"""Opening a checkpoint for from_pretrained: its weights, and the config that the caller wants for them."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistral_portable.errors import InputError
from mistral_portable.transformers.configuration import MistralConfig, known_fields
from mistral_portable.weights import Checkpoint, Tensor, open_checkpoint, stored_head

__all__ = ["open_pretrained"]


def open_pretrained(
    name: str | Path, config: MistralConfig | None, changed: Mapping[str, Any], **opening: Any
) -> tuple[MistralConfig, Mapping[str, Tensor], Checkpoint]:
    """Open a checkpoint; returns the config, the tensors by name, and the checkpoint itself.

    config: replaces the checkpoint's. changed: fields of the checkpoint's config that get another value. opening:
    arguments of `open_checkpoint`. Notices of the checkpoint are issued as warnings.

    Raises InputError for both config and changed, and the errors of `open_checkpoint`.
    """
    if config is not None and (changed or not isinstance(config, MistralConfig)):
        raise InputError("config= is a MistralConfig, and has all fields: change them there")
    fields = known_fields(changed)
    checkpoint = open_checkpoint(name, **opening)
    source = str(checkpoint.path)
    read = config or MistralConfig.from_dict({**checkpoint.config.to_dict(), **fields})
    native, tensors, notices = stored_head(read.native(), checkpoint.tensors, source)
    if native.tie_word_embeddings != read.tie_word_embeddings:
        read = MistralConfig.from_dict({**read.to_dict(), "tie_word_embeddings": native.tie_word_embeddings})
    for notice in (*checkpoint.notices, *notices):
        warnings.warn(notice, stacklevel=3)
    return read, tensors, checkpoint

"""generation_config.json: how the makers of a model let it draw, and the ids that end a text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.folder import read_object

__all__ = ["end_ids", "read_generation_config"]


def read_generation_config(folder: Path) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The fields of a folder's generation_config.json, in transformers' names, and notices; none if there is no file.

    A file that cannot be read has no fields, and a notice tells of it.
    """
    try:
        return read_object(folder / "generation_config.json"), ()
    except TokenizerError as error:
        return {}, (f"{error}; until then its defaults and end tokens do not count",)


def end_ids(stated: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of `eos_token_id`; none if it is no list of ids."""
    ends = stated.get("eos_token_id")
    return tuple(id for id in (ends if isinstance(ends, list) else [ends]) if type(id) is int and id >= 0)

"""Reads the JSON objects that adapters have beside their weights."""

import json
from pathlib import Path
from typing import Any

from mistral_portable.config.checks import real, show
from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.weights.source import map_file

__all__ = ["number", "positive", "read_settings"]

_MAX_SETTINGS = 2**20  # bytes; with a rank for each module of a large model they have 100 kB


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in a file of at most 1 MiB. Raises CheckpointError for other files."""
    data = map_file(path)
    try:
        settings = json.loads(bytes(data[: _MAX_SETTINGS + 1]))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON of at most {_MAX_SETTINGS} bytes: {error}") from error
    if len(data) > _MAX_SETTINGS or not isinstance(settings, dict):
        raise CheckpointError(f"{path}: not a JSON object of at most {_MAX_SETTINGS} bytes; save the adapter again")
    return settings


def number(path: Path, name: str, value: object) -> float:
    """The value as a finite float. Raises CheckpointError, which names the file and the key."""
    try:
        return real(name, value)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def positive(path: Path, name: str, value: object) -> int:
    """The value, an integer of 1 or more. Raises CheckpointError, which names the file and the key."""
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{path}: {name}={show(value)} must be an integer from 1")
    return value

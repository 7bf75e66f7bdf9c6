"""API keys: from options, a file and the environment."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mistral_portable.errors import InputError

__all__ = ["KEY_VARIABLE", "read_keys"]

KEY_VARIABLE = "MISTRAL_PORTABLE_API_KEY"


def read_keys(given: Sequence[str], file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """All keys: those given, the lines of a file, and that of KEY_VARIABLE.

    Raises InputError for a file that cannot be read or has no key, and for a key that no header can carry: a typing
    error must not open the server.
    """
    keys = list(given)
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file {file}: cannot be read: {error}") from error
        if not any(lines):
            raise InputError(f"--api-key-file {file}: holds no key: write one in a line")
        keys += filter(None, lines)
    if KEY_VARIABLE in environment:
        keys.append(environment[KEY_VARIABLE])
    for number, key in enumerate(keys, start=1):
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(f"API key {number} of {len(keys)}: must be printable ASCII characters without spaces")
    return tuple(keys)

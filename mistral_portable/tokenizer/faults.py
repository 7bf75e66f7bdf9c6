"""Errors of mistral-common and pydantic as one line."""

__all__ = ["one_line"]

_SHOWN = 60  # characters of a wrong value
_SAID = 300  # characters of a message, which may repeat the value


def one_line(error: Exception) -> str:
    """The message of an error; one of pydantic names the field and the value."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        field = ".".join([error.title, *map(str, first["loc"])])
        return " ".join(f"{field}: {first['msg']}, got {first['input']!r:.{_SHOWN}}".split())
    if isinstance(error, KeyError):
        return f"{error!s:.{_SAID}} is missing"
    return " ".join(f"{error!s:.{_SAID}}".split())

"""The name of the model: the first argument of a command, or --model."""

import os

import typer

from mistral_portable.errors import InputError

__all__ = ["hub_name", "named", "placed"]


def placed(option: str | None, *words: str | None) -> tuple[str | None, ...]:
    """The arguments of a command, of which the first is the model: with --model all are one place further on.

    >>> placed(None, "tiny", "text.txt"), placed("tiny", "text.txt", None)
    (('tiny', 'text.txt'), ('tiny', 'text.txt'))

    Raises typer.BadParameter if there is one too many.
    """
    if option is None:
        return words
    if words[-1] is not None:
        raise typer.BadParameter(f"{words[0]!r} beside --model {option!r}: give one of them", param_hint="'MODEL'")
    return (option, *words[:-1])


def named(model: str | None) -> str:
    """The model of a command that has no default. Raises typer.BadParameter for None."""
    if model is None:
        raise typer.BadParameter("give a model: its name or path, or --model", param_hint="'MODEL'")
    return model


def hub_name(model: str) -> tuple[str, str | None]:
    """The repository of a name on the hub, and the GGUF file of it that is named.

    >>> hub_name("owner/name:Q4/m.gguf"), hub_name("owner/name")
    (('owner/name', 'Q4/m.gguf'), ('owner/name', None))

    Raises InputError for the built-in model, for paths, and for what is no name.
    """
    from mistral_portable.weights.open import HUB_NAME

    if model == "tiny":
        raise InputError("'tiny' is built in, it is not in the hub's cache")
    if os.path.lexists(model):
        raise InputError(f"{model}: a path on this machine, not of the hub's cache")
    match = HUB_NAME.fullmatch(model)
    if match is None:
        raise InputError(f"{model!r}: no name on the Hugging Face hub (owner/name or owner/name:file.gguf)")
    return match[1], match[2]

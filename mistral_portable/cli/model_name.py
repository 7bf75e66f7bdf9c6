"""The name of the model: the first argument of a command, or --model."""

import typer

__all__ = ["named", "placed"]


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

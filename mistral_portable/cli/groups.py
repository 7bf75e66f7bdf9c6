"""grouped: options that several commands share are declared once, as the fields of a dataclass."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

__all__ = ["grouped"]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of a dataclass type are, for typer, the fields of it, each an option of its own.

    >>> @dataclass
    ... class ModelOptions:
    ...     threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None
    >>> @grouped
    ... def run(prompt: str, options: ModelOptions) -> None:
    ...     print(prompt, options.threads)  # `run hello --threads 2` prints: hello 2
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    @wraps(command)
    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, given in inspect.signature(command).parameters.items()
        for parameter in (_parameters(groups[name]) if name in groups else (given.replace(annotation=hints[name]),))
    ]
    # Typer reads both.
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameters(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )

"""Params of the Flax classes: weights in nested dictionaries, by the parts of their checkpoint names."""

from collections.abc import Iterator, Mapping
from typing import Any

from mistral_portable.errors import InputError

__all__ = ["cast", "check_shapes", "flatten", "nest"]


def nest(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Nest weights by the parts of their names.

    Example: `{"model.norm.weight": w, "lm_head.weight": v}` becomes
    `{"model": {"norm": {"weight": w}}, "lm_head": {"weight": v}}`.
    """
    root: dict[str, Any] = {}
    for name, array in weights.items():
        *path, last = name.split(".")
        at = root
        for key in path:
            at = at.setdefault(key, {})
        at[last] = array
    return root


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `nest`: weights by their full names. Raises InputError if `params` is not a dictionary."""
    if not isinstance(params, Mapping):
        raise InputError(f"params is a {type(params).__name__}: pass a tree of dictionaries, as model.params")
    return {".".join(path): array for path, array in _leaves(params, ())}


def check_shapes(found: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError unless the weights have exactly the expected names and shapes and are floats."""
    if missing := sorted(expected.keys() - found.keys()):
        raise InputError(f"params: {missing[0]} is missing, {len(missing)} in all: pass the model's whole tree")
    if unknown := sorted(found.keys() - expected.keys()):
        raise InputError(f"params: the model has no {unknown[0]}")
    for name, shape in expected.items():
        if (has := tuple(getattr(found[name], "shape", ()))) != shape:
            raise InputError(f"params: {name} has the shape {list(has)}, not {list(shape)}")
        if "float" not in str(getattr(found[name], "dtype", "")):
            raise InputError(f"params: {name} is a {type(found[name]).__name__}: pass an array of floats")


def cast(params: Mapping[str, Any], dtype: str, mask: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Convert arrays to a float type. mask: nested like params; arrays for which it is not true stay as they are."""
    chosen = None if mask is None else flatten(mask)
    return nest(
        {
            name: array.astype(dtype) if chosen is None or chosen.get(name) else array
            for name, array in flatten(params).items()
        }
    )


def _leaves(node: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value

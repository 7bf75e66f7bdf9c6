"""Weights as Flax has them: a tree of dictionaries, here by the names of the checkpoint."""

from collections.abc import Iterator, Mapping
from typing import Any

from mistral_portable.errors import InputError

__all__ = ["cast", "flat", "require_like", "tree"]


def tree(weights: Mapping[str, Any]) -> dict[str, Any]:
    """{"model.norm.weight": w, "lm_head.weight": v} -> {"model": {"norm": {"weight": w}}, "lm_head": {"weight": v}}"""
    root: dict[str, Any] = {}
    for name, array in weights.items():
        *path, last = name.split(".")
        at = root
        for key in path:
            at = at.setdefault(key, {})
        at[last] = array
    return root


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """The way back. Raises InputError for what is no tree."""
    if not isinstance(params, Mapping):
        raise InputError(f"params is a {type(params).__name__}: pass a tree of dictionaries, as model.params")
    return {".".join(path): array for path, array in _leaves(params, ())}


def require_like(found: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError unless the flat weights have exactly the expected names and shapes."""
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
    """The tree with its arrays in a float type; with a mask, only where that tree has a true value."""
    chosen = None if mask is None else flat(mask)
    return tree(
        {
            name: array.astype(dtype) if chosen is None or chosen.get(name) else array
            for name, array in flat(params).items()
        }
    )


def _leaves(node: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value

"""Adapters: those that a model was loaded with, what they do to its graph, and which of them a call wants."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.adapters import Adapter, LowRank, open_adapter
from mistral_portable.config import MistralConfig
from mistral_portable.errors import InputError
from mistral_portable.graph import Graph
from mistral_portable.graph.adapters import Changed, add_adapters, lora_a, lora_b, replacement
from mistral_portable.weights import DenseTensor, Tensor, fingerprint

__all__ = ["Adapters", "Chosen", "Weights"]

Chosen = str | Mapping[str, float] | None
"""The name of an adapter, weights of several by name, {} for none, or None for those that `load` was told to use."""

Weights = tuple[float, ...]
"""The weight of each adapter of a model; () if all are 0."""

_MOST = 65504.0
"""The largest weight: float16's largest number, so that every executor can hold it."""


class Adapters:
    """The adapters of a model, by name."""

    def __init__(self, paths: Mapping[str, str | Path], default: Chosen, config: MistralConfig) -> None:
        """default: for calls that choose none. Raises InputError for a bad name, weight or choice, and the errors of
        `open_adapter`."""
        named = isinstance(paths, Mapping) and all(
            isinstance(name, str) and name and isinstance(path, str | Path) and str(path)
            for name, path in paths.items()
        )
        if not named:
            raise InputError(f"adapters={paths!r:.60} must be paths by name, such as {{'sql': 'loras/sql'}}")
        self._config = config
        self._adapters = {name: open_adapter(path, config) for name, path in paths.items()}
        for adapter in self._adapters.values():
            for table in adapter.whole.values():
                if table.shape[0] != config.vocab_size:
                    raise InputError(
                        f"{adapter.path} has {table.shape[0]} rows of {table.name}, and the model has a vocabulary of "
                        f"{config.vocab_size}: merge it, which adds its tokens: convert --merge-adapter"
                    )
        self._default: Weights = self.weights({} if default is None else default)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in the order of the weights."""
        return tuple(self._adapters)

    def weights(self, chosen: Chosen) -> Weights:
        """The weights that a call wants. Raises InputError for an adapter that is not there, and for a bad weight."""
        if chosen is None:
            return self._default
        if isinstance(chosen, str):
            chosen = {chosen: 1.0}
        if not isinstance(chosen, Mapping):
            raise InputError(f"adapter={chosen!r:.40} must be the name of an adapter, or weights by name")
        for name, weight in chosen.items():
            if name not in self._adapters:
                there = (
                    f"there are {', '.join(self._adapters)}" if self._adapters else "give load(..., adapters=) its path"
                )
                raise InputError(f"adapter={name!r:.60} is not loaded: {there}")
            if isinstance(weight, bool) or not isinstance(weight, Real) or not abs(weight) <= _MOST:
                raise InputError(f"adapter {name!r} has the weight {weight!r:.40}: give a number up to {_MOST:g}")
            if self._adapters[name].whole and weight not in (0, 1):
                raise InputError(f"adapter {name!r} replaces whole weights: its weight is 0 or 1, not {weight}")
        whole = [name for name, weight in chosen.items() if weight and self._adapters[name].whole]
        if len(whole) > 1:
            raise InputError(f"adapters {', '.join(whole)} replace whole weights: use one of them at a time")
        weights = tuple(float(chosen.get(name, 0)) for name in self._adapters)
        return weights if any(weights) else ()

    def add_to(self, graph: Graph) -> tuple[Graph, Mapping[str, Tensor]]:
        """The graph with the adapters, and the tensors of its further parameters; the same graph if there are none."""
        names = dict.fromkeys(
            name for adapter in self._adapters.values() for name in (*adapter.low_rank, *adapter.whole)
        )
        if not names:
            return graph, {}
        changed, constants = add_adapters(graph, {name: self._changed(name) for name in names})
        tensors: dict[str, Tensor] = {name: DenseTensor(name, "float32", array) for name, array in constants.items()}
        tables = {node.inputs[1] for node in graph.nodes if node.op == "embedding"}
        for name in names:
            parts = [adapter.low_rank[name] for adapter in self._adapters.values() if name in adapter.low_rank]
            if parts:
                tensors[lora_a(name)] = _joined(lora_a(name), [part.down for part in parts], transposed=name in tables)
                tensors[lora_b(name)] = _joined(lora_b(name), [part.up for part in parts], axis=1)
            for index, adapter in enumerate(self._adapters.values()):
                if name in adapter.whole:
                    tensors[replacement(name, index)] = adapter.whole[name]
        return changed, tensors

    def named(self, weights: Weights) -> list[tuple[str, float]]:
        """Fingerprints and weights of those whose weight is not 0, for files: names are chosen anew by each process."""
        return [(print_, weight) for print_, weight in zip(self._fingerprints, weights, strict=False) if weight]

    def digest(self, model: str, weights: Weights) -> str:
        """The fingerprint of a model whose own one is `model`, with its adapters; of the model if all weights are 0."""
        named = self.named(weights)
        return hashlib.sha256(repr((model, named)).encode()).hexdigest()[: len(model)] if named else model

    def found(self, named: Sequence[tuple[str, float]]) -> Weights | None:
        """The weights of the adapters with these fingerprints; None if one of them is not there."""
        weights = [0.0] * len(self._adapters)
        for print_, weight in named:
            free = [index for index, own in enumerate(self._fingerprints) if own == print_ and not weights[index]]
            if not free:
                return None
            weights[free[0]] = weight
        return tuple(weights) if named else ()

    @cached_property
    def _fingerprints(self) -> tuple[str, ...]:
        return tuple(fingerprint(self._config, _tensors(adapter)) for adapter in self._adapters.values())

    def _changed(self, name: str) -> Changed:
        low: list[LowRank | None] = [adapter.low_rank.get(name) for adapter in self._adapters.values()]
        return Changed(
            ranks=tuple(part.down.shape[0] if part else 0 for part in low),
            scales=tuple(part.scale if part else 0.0 for part in low),
            whole=tuple(index for index, adapter in enumerate(self._adapters.values()) if name in adapter.whole),
        )


def _joined(name: str, parts: Sequence[DenseTensor], *, axis: int = 0, transposed: bool = False) -> DenseTensor:
    """One matrix of several, in their type if they have the same, else float32. transposed: as embeddings want it."""
    types = {part.dtype for part in parts}
    dtype = parts[0].dtype if len(types) == 1 else "float32"
    alike = all(part.dtype == dtype for part in parts)
    arrays: list[NDArray[Any]] = [part.raw() if alike else part.numpy() for part in parts]
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)
    return DenseTensor(name, dtype, np.ascontiguousarray(joined.T) if transposed else joined)


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Everything that decides what an adapter does, by name."""
    tensors: dict[str, Tensor] = dict(adapter.whole)
    for name, part in adapter.low_rank.items():
        tensors |= {f"{name} A * {part.scale!r}": part.down, f"{name} B": part.up}
    return tensors

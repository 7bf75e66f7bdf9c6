"""The files of LoRA adapters: told from those of models by their names, by their tensors, and by GGUF's metadata.

`mistral_portable.adapters` reads them; here is what the readers of models say when they are given one.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from mistral_portable.errors import CheckpointError
from mistral_portable.weights.gguf_file import read_gguf

__all__ = [
    "FIXED_NAMES",
    "SETTINGS",
    "adapter_files",
    "explain",
    "explain_gguf",
    "is_gguf_adapter",
    "refuse_adapter_tensors",
]

SETTINGS = "adapter_config.json"
"""The settings of PEFT's and of mlx-lm's adapters."""

FIXED_NAMES = ("adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors", "lora.safetensors")
"""PEFT's two, mlx-lm's, mistral-finetune's."""

_OTHERS = re.compile(r"\d+_adapters\.safetensors|adapter_.*\.safetensors", re.ASCII)
"""mlx-lm's of steps of the training, and PEFT's under other names."""

_TENSOR = re.compile(r"\.lora_(?:[abAB]|embedding_[AB])(?:\.|$)")
_MAX_SETTINGS = 2**20  # bytes


def adapter_files(names: Collection[str]) -> list[str]:
    """The names that are those of adapters' weights, the most likely one first.

    >>> adapter_files(["model.safetensors", "0000100_adapters.safetensors", "adapters.safetensors"])
    ['adapters.safetensors', '0000100_adapters.safetensors']
    """
    others = {name for name in names if _OTHERS.fullmatch(name)} - set(FIXED_NAMES)
    return [*(name for name in FIXED_NAMES if name in names), *sorted(others)]


def is_gguf_adapter(path: Path) -> bool:
    """Whether a GGUF file says that it is an adapter; files that cannot be read do not."""
    try:
        return read_gguf(path).scalars.get("general.type") == "adapter"
    except CheckpointError:
        return False


def refuse_adapter_tensors(names: Iterable[str], path: Path) -> None:
    """Raise CheckpointError if tensors with these names are an adapter's. path: the file or folder that has them."""
    if any(_TENSOR.search(name) for name in names):
        raise CheckpointError(explain(path))


def explain(path: Path) -> str:
    """Words for an error: the path is an adapter, of which model, and how it is used."""
    settings = _settings((path if path.is_dir() else path.parent) / SETTINGS)
    return _words(path, settings.get("base_model_name_or_path") or settings.get("model"))


def explain_gguf(path: Path, scalars: Mapping[str, object]) -> str:
    """Words for an error, as `explain`. scalars: the metadata of a GGUF adapter."""
    keys = ("general.base_model.0.repo_url", "general.base_model.0.name")
    return _words(path, next((scalars[key] for key in keys if scalars.get(key)), None))


def _words(path: Path, base: object) -> str:
    of = f" of the model {base[:120]!r}" if isinstance(base, str) and base else ""
    return (
        f"{path}: a LoRA adapter{of}, which runs with its model only: --model MODEL --adapter {path}, in Python "
        "load(MODEL, adapters={NAME: PATH}); `convert MODEL OUT --merge-adapter PATH` makes one model of both"
    )


def _settings(path: Path) -> dict[str, object]:
    """The settings of an adapter, for what they say of its model; empty if they cannot be read."""
    try:
        found = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_SETTINGS else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

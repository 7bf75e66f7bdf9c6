"""Descriptions of a model, as Ollama's API gives them.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md (list, show, list running).
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from mistral_portable.api import JSON
from mistral_portable.engine import Model
from mistral_portable.graph import build

__all__ = ["VERSION", "ModelCard"]

VERSION = "0.12.11"
"""The Ollama whose API this is; clients ask for what is as new as they need."""

_FOREVER = "2318-01-01T00:00:00Z"  # the model stays in memory


class ModelCard:
    """One model under one name."""

    def __init__(self, model: Model, name: str, modified: int, adapter: Mapping[str, float]) -> None:
        """modified: Unix time. adapter: the weights of the adapters by name; {} for the model alone."""
        gguf = model.source.endswith(".gguf")
        count = sum(math.prod(parameter.shape) for parameter in build(model.config).parameters.values())
        self._context = model.max_context
        self._model = model
        self._modified = datetime.fromtimestamp(modified, UTC).isoformat().replace("+00:00", "Z")
        self._count = count
        self._named = {
            "name": name,
            "model": name,
            "size": _size(Path(model.source)),
            "digest": model.digest(adapter),
            "details": {
                "parent_model": "",
                "format": "gguf" if gguf else "safetensors",
                "family": "mistral",
                "families": ["mistral"],
                "parameter_size": _short(count),
                "quantization_level": "unknown",
            },
        }

    def listed(self) -> JSON:
        """An entry of /api/tags."""
        return {**self._named, "modified_at": self._modified}

    def loaded(self) -> JSON:
        """An entry of /api/ps."""
        return {**self._named, "expires_at": _FOREVER, "size_vram": 0, "context_length": self._context}

    def shown(self) -> JSON:
        """The answer of /api/show. The template is in the tokenizer, and not Go's."""
        chats = self._model.has_tokenizer and self._model.tokenizer.chats
        tools = chats and self._model.tokenizer.version != "v1"
        return {
            "license": "",
            "modelfile": "",
            "parameters": "",
            "template": "",
            "modified_at": self._modified,
            "details": self._named["details"],
            "model_info": {
                "general.architecture": "mistral",
                "general.parameter_count": self._count,
                "mistral.context_length": self._context,
                "mistral.embedding_length": self._model.config.hidden_size,
                "mistral.block_count": self._model.config.num_hidden_layers,
                "mistral.vocab_size": self._model.config.vocab_size,
            },
            "capabilities": ["completion", *(["tools"] if tools else [])],
        }


def _size(path: Path) -> int:
    """Bytes of a checkpoint's files."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _short(count: int) -> str:
    """A number of parameters as Ollama writes it: 7.2B, 512.3K."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)

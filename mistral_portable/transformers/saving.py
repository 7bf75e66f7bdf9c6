"""save_pretrained(): a model as a folder of Hugging Face's format."""

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from mistral_portable.conversion.parts import float_part
from mistral_portable.conversion.safetensors import write_sharded
from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.transformers.configuration import MistralConfig
from mistral_portable.weights import DenseTensor, Tensor

__all__ = ["save"]


_CLASSES = {"mistral": "Mistral", "mixtral": "Mixtral", "ministral3": "Ministral3"}
"""How transformers begins the names of its classes, by `model_type`."""


def save(folder: Path, config: MistralConfig, architecture: str, tensors: Mapping[str, Tensor]) -> None:
    """Everything is written beside its place and then renamed: the weights may be mapped from the very files.

    Raises ConfigError for what transformers has no class for.
    """
    kind = _kind(config)
    parts = [
        float_part(name, tensor, tensor.dtype if isinstance(tensor, DenseTensor) else "float32")
        for name, tensor in tensors.items()
    ]
    staging = folder / f".{uuid.uuid4().hex[:8]}.partial"
    try:
        staging.mkdir(parents=True)
        write_sharded(staging, parts, {"format": "pt"}, lambda part: None)
        types = {part.dtype for part in parts}
        described = {
            **config.to_dict(),
            "model_type": kind,
            "architectures": [architecture.replace("Mistral", _CLASSES[kind])],
            "dtype": types.pop() if len(types) == 1 else "float32",
        }
        (staging / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        new = {path.name for path in staging.iterdir()}
        for name in sorted(new - {"config.json"}):
            (staging / name).replace(folder / name)
        for path in folder.glob("model*.safetensors*"):  # an index of before would name the weights of before
            if path.name not in new:
                path.unlink()
        (staging / "config.json").replace(folder / "config.json")
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _kind(config: MistralConfig) -> str:
    native = config.native()
    if len(set(native.layer_windows)) > 1:
        raise ConfigError(
            f"sliding_window={native.sliding_window}: layers differ, which `mistral_portable.convert` writes"
        )
    if native.num_local_experts and native.query_scale:
        raise ConfigError(
            "transformers has no class with experts and a scale of queries; `mistral_portable.convert` writes raw files"
        )
    if native.num_local_experts:
        return "mixtral"
    return "ministral3" if native.yarn or native.query_scale else "mistral"

"""save_pretrained(): writes a model as a folder in Hugging Face's format."""

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistral_portable.conversion.hf import hf_class
from mistral_portable.conversion.parts import float_part
from mistral_portable.conversion.safetensors import write_sharded
from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.transformers.configuration import MistralConfig
from mistral_portable.weights import PACKING_KEYS, DenseTensor, Tensor

__all__ = ["save_model"]


def save_model(
    folder: Path,
    config: MistralConfig,
    architecture: str,
    tensors: Mapping[str, Tensor],
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write `config.json` and safetensors. architecture: the class, such as "MistralForCausalLM". generation: the
    fields of generation_config.json, which is written if there are any.

    Files are written to a staging folder and then renamed, as the weights may be mapped from the files that they
    replace. Raises ConfigError for a model that transformers has no class for, CheckpointError if writing fails.
    """
    native = config.native()
    if len(set(native.layer_windows)) > 1:
        raise ConfigError(
            f"sliding_window={native.sliding_window}: layers differ; `mistral_portable.convert` writes it"
        )
    kind, causal_lm = hf_class(native, False, "the model")
    name = causal_lm.removesuffix("ForCausalLM")
    parts = [
        float_part(key, tensor, tensor.dtype if isinstance(tensor, DenseTensor) else "float32")
        for key, tensor in tensors.items()
    ]
    staging = folder / f".{uuid.uuid4().hex[:8]}.partial"
    try:
        staging.mkdir(parents=True)
        write_sharded(staging, parts, {"format": "pt"}, lambda part: None)
        types = {part.dtype for part in parts}
        described = {
            **{key: value for key, value in config.to_dict().items() if key not in PACKING_KEYS},
            "model_type": kind,
            "architectures": [architecture.replace("Mistral", name)],
            "dtype": types.pop() if len(types) == 1 else "float32",
        }
        (staging / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        if generation:
            text = json.dumps(generation, indent=2) + "\n"
            (staging / "generation_config.json").write_text(text, encoding="utf-8")
        new = {path.name for path in staging.iterdir()}
        for file in sorted(new - {"config.json"}):
            (staging / file).replace(folder / file)
        for path in folder.glob("model*.safetensors*"):  # an old index would name the old weights
            if path.name not in new:
                path.unlink()
        (staging / "config.json").replace(folder / "config.json")
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)

"""HF folders of packed weights on disk: the matrices of the layers are packed by a function `pack`.

pack(name, values) returns {suffix: tensor}, such as {"qweight": ..., "scales": ...}; the other tensors are floats.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from weights.files import random_tensors

from mistral_portable.config import MistralConfig

__all__ = ["Pack", "packed", "write_packed"]

Pack = Callable[[str, NDArray[np.float32]], Mapping[str, torch.Tensor]]


def packed(name: str) -> bool:
    """Whether the matrix is a linear of a layer, and so packed."""
    return "_proj." in name


def write_packed(folder: Path, config: MistralConfig, how: dict[str, Any], pack: Pack) -> dict[str, torch.Tensor]:
    """Write the folder with `how` as `quantization_config`; returns the tensors of `model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, torch.Tensor] = {}
    for name, values in random_tensors(config, np.random.default_rng(0)).items():
        module = name.removesuffix(".weight")
        if packed(name):
            stored |= {f"{module}.{part}": tensor.contiguous() for part, tensor in pack(name, values).items()}
        else:
            stored[name] = torch.tensor(values).half()
    kind = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    (folder / "config.json").write_text(json.dumps(kind | config.to_dict() | {"quantization_config": how}))
    save_file(stored, folder / "model.safetensors")
    return stored

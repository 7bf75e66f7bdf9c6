"""Folders of random adapters in PEFT's format, for the embedded model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mistral_portable.config import MistralConfig
from mistral_portable.graph import build
from mistral_portable.weights import open_checkpoint

__all__ = ["CONFIG", "TARGETS", "deltas", "peft_adapter"]

CONFIG: MistralConfig = open_checkpoint("tiny").config
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_SCALE = 2.0


def peft_adapter(
    folder: Path,
    *,
    seed: int,
    rank: int = 4,
    targets: Sequence[str] = TARGETS,
    whole: Sequence[str] = (),
    layers: Sequence[int | None] | None = None,
    factor: float = 1.0,
) -> Path:
    """Write an adapter that changes the modules that end with `targets` by about their own size; its scale is 2.

    whole: "lm_head" or "model.embed_tokens", saved as they are with noise. layers: those that change, with None
    the head, too; None: all.
    factor: of A.
    """
    random = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    checkpoint = open_checkpoint("tiny")
    for name, shape in build(CONFIG).tensors.items():
        module = name.removesuffix(".weight")
        layer = int(module.split(".")[2]) if ".layers." in module else None
        if module.endswith(tuple(targets)) and (layers is None or layer in layers):
            size = float(np.std(checkpoint.tensors[name].numpy())) / _SCALE / rank**0.5
            a, b = random.standard_normal((rank, shape[1])), random.standard_normal((shape[0], rank)) * size
            tensors[f"base_model.model.{module}.lora_A.weight"] = np.clip(a * factor, -65504, 65504).astype(np.float32)
            tensors[f"base_model.model.{module}.lora_B.weight"] = b.astype(np.float32)
        if module in whole:
            values = checkpoint.tensors[name].numpy()
            noise = random.standard_normal(values.shape) * np.std(values)
            tensors[f"base_model.model.{module}.weight"] = (values + noise).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _SCALE * rank,
        "target_modules": list(targets),
        "modules_to_save": [module.rpartition(".")[2] for module in whole] or None,
        "base_model_name_or_path": "tiny",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def deltas(folder: Path) -> Mapping[str, NDArray[np.float32]]:
    """The sums that an adapter of `peft_adapter` adds to each weight, by its name."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    found: dict[str, NDArray[np.float32]] = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[f"{module}.weight"] = _SCALE * tensors[name.replace("lora_A", "lora_B")] @ a
    return found

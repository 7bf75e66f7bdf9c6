"""open_adapter(): finds the files of an adapter and the reader of their format."""

import os
from pathlib import Path

from mistral_portable.adapters.adapter import Adapter
from mistral_portable.adapters.gguf import open_gguf_adapter
from mistral_portable.adapters.mlx import open_mlx
from mistral_portable.adapters.peft import open_peft
from mistral_portable.adapters.raw import open_raw_adapter
from mistral_portable.adapters.settings import read_settings
from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError
from mistral_portable.weights.adapter_files import SETTINGS, adapter_files, is_gguf_adapter
from mistral_portable.weights.source import map_file

__all__ = ["open_adapter"]

_WHAT = (
    "an adapter is a folder of PEFT's (adapter_config.json, adapter_model.safetensors) or mlx-lm's "
    "(adapter_config.json, adapters.safetensors), mistral-finetune's lora.safetensors, or a GGUF file made by "
    "convert_lora_to_gguf.py"
)


def open_adapter(path: str | Path, config: MistralConfig) -> Adapter:
    """Open a LoRA adapter lazily: its files are mapped; its values are read once, as a check.

    path: a folder, or one of its files; formats are those of `docs/adapters.md`.
    config: that of the model that it changes.

    Raises CheckpointError if there is no adapter, if it is unreadable, corrupt, of an unsupported kind, of another
    model, or has values that are not finite.
    """
    path = Path(path)
    if not os.path.exists(path):  # unlike Path.exists, it is quiet about names that are too long
        raise CheckpointError(
            f"{path!s:.200}: no such file or folder; adapters of the hub must be downloaded first: hf download"
        )
    if path.is_dir():
        return _open_folder(path, config)
    if bytes(map_file(path)[:4]) == b"GGUF":
        return open_gguf_adapter(path, config)
    if path.suffix not in (".safetensors", ".bin"):
        raise CheckpointError(f"{path}: {_WHAT}")
    if path.name != "lora.safetensors" and (path.parent / SETTINGS).exists():
        return _open_with_settings(path, path.parent / SETTINGS, path, config)
    return open_raw_adapter(path, path, config)


def _open_folder(folder: Path, config: MistralConfig) -> Adapter:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error
    found = adapter_files(names)
    if SETTINGS in names:
        own = [name for name in found if name != "lora.safetensors"]
        if not own:
            raise CheckpointError(f"{folder}: has {SETTINGS}, and no weights beside it; {_WHAT}")
        return _open_with_settings(folder, folder / SETTINGS, folder / own[0], config)
    if "lora.safetensors" in found:
        return open_raw_adapter(folder, folder / "lora.safetensors", config)
    if found:
        raise CheckpointError(f"{folder}: {found[0]} needs the {SETTINGS} that was saved with it")
    ggufs = [folder / name for name in names if name.endswith(".gguf") and is_gguf_adapter(folder / name)]
    if len(ggufs) > 1:
        raise CheckpointError(f"{folder}: several adapters: {', '.join(file.name for file in ggufs)}; give one's path")
    if ggufs:
        return open_gguf_adapter(ggufs[0], config)
    raise CheckpointError(f"{folder}: holds no adapter; {_WHAT}")


def _open_with_settings(path: Path, settings: Path, weights: Path, config: MistralConfig) -> Adapter:
    """PEFT's adapters name their kind, mlx-lm's do not."""
    keys = read_settings(settings).keys()
    if "peft_type" in keys:
        return open_peft(path, settings, weights, config)
    if keys & {"fine_tune_type", "lora_parameters"}:
        return open_mlx(path, settings, weights, config)
    raise CheckpointError(
        f"{settings}: has neither PEFT's peft_type nor mlx-lm's lora_parameters; save the adapter again"
    )

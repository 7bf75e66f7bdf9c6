"""open_config(): the config of a model, without its weights where a file holds the config alone."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError
from mistral_portable.weights.hub import download_config
from mistral_portable.weights.open import HUB_NAME, open_checkpoint
from mistral_portable.weights.safetensors import hf_config

__all__ = ["open_config"]


def open_config(model: str | Path, *, revision: str | None = None, subfolder: str = "", **hub: Any) -> MistralConfig:
    """Read the config of a model: of a folder its `config.json`, else its `params.json`, which need no weights there.

    Of a hub repository only these files are downloaded. In other cases, such as GGUF files, the model is opened.

    model, revision, subfolder: as for `open_checkpoint`. hub: arguments of `huggingface_hub.snapshot_download`, for a
    repository.
    Raises CheckpointError if there is no config, ConfigError for models of other architectures and impossible values.
    """
    path = Path(str(files("mistral_portable") / "assets" / "tiny")) if model == "tiny" else Path(model)
    match = None if path.exists() else HUB_NAME.fullmatch(str(model))
    if match and match[2] is None:
        path = download_config(match[1], revision=revision, subfolder=subfolder, **hub)
    else:
        path /= subfolder
    found = path if path.name in ("config.json", "params.json") else _config_file(path)
    if found is None or (revision and match is None):
        return open_checkpoint(model, revision=revision, subfolder=subfolder, hub=hub).config
    if not found.is_file():
        raise CheckpointError(f"{found}: not a file")
    return hf_config(found)[0] if found.name == "config.json" else MistralConfig.from_file(found)


def _config_file(folder: Path) -> Path | None:
    return next((file for name in ("config.json", "params.json") if (file := folder / name).is_file()), None)

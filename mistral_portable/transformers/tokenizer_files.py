"""Files of tokenizers: found, saved and uploaded."""

import os
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mistral_portable.errors import CheckpointError, InputError
from mistral_portable.tokenizer import GGUFVocabulary, TokenizerFile, TokenizerFolder, TokenizerSource
from mistral_portable.tokenizer.folder import read_object
from mistral_portable.tokenizer.gguf import to_file
from mistral_portable.weights import open_checkpoint
from mistral_portable.weights.hub import download_tokenizer
from mistral_portable.weights.open import HUB_NAME
from mistral_portable.weights.safetensors import tokenizer_in, tokenizer_name

__all__ = ["call_settings", "find_tokenizer", "made_folder", "save_tokenizer", "upload_file"]

_SETTINGS = (
    "clean_up_tokenization_spaces",
    "model_input_names",
    "model_max_length",
    "padding_side",
    "truncation_side",
)
NONE = "no tekken.json, no tokenizer.model* and no tokenizer.json"


def find_tokenizer(
    model: str | os.PathLike[str], more: tuple[Any, ...], revision: str, *, subfolder: str = "", **hub: Any
) -> TokenizerSource:
    """Find a tokenizer in a folder, a model's file, a hub repository (only the tokenizer is downloaded) or "tiny".

    more: further arguments of the caller without a name, of which there must be none. subfolder: of the folder or
    repository. hub: arguments of the download.
    Raises InputError if there is no tokenizer, CheckpointError if the model or the hub cannot be read.
    """
    if more:
        raise InputError(f"{more!r:.80}: pass one name or path, and everything else by name")
    if model == "tiny":
        return _in_folder(Path(str(files("mistral_portable") / "assets" / "tiny")) / subfolder)
    path = Path(model)
    if path.is_dir():
        return _in_folder(path / subfolder)
    if path.exists():
        return TokenizerFile(path) if tokenizer_name([path.name]) else _inside(path)
    match = HUB_NAME.fullmatch(str(model))
    if match is None:
        raise InputError(
            f"{str(model)!r}: no such file or folder, and no name on the Hugging Face hub "
            "(owner/name or owner/name:file.gguf)"
        )
    if match[2]:
        if any(hub.values()):
            given = ", ".join(name for name, value in hub.items() if value)
            raise InputError(f"{model}: {given} cannot be used with one file of a repository; download it first")
        return _inside(model, None if revision == "main" else revision)
    if hub["force_download"] and hub["local_files_only"]:
        raise InputError("force_download=True and local_files_only=True exclude each other; pass one of them")
    return _in_folder(download_tokenizer(str(model), revision=revision, subfolder=subfolder, **hub), str(model))


def _in_folder(folder: Path, repository: str | None = None) -> TokenizerSource:
    # A repository without a tokenizer leaves no folder.
    found = tokenizer_in(folder) if folder.is_dir() else None
    if found is not None:
        return found
    if repository is not None:
        raise InputError(f"{repository}: {NONE} in the repository")
    try:
        return _inside(folder)
    except CheckpointError as error:
        raise InputError(f"{folder}: {NONE}, and no model that brings its own ({error})") from error


def _inside(model: str | os.PathLike[str], revision: str | None = None) -> TokenizerSource:
    checkpoint = open_checkpoint(model if isinstance(model, str) else Path(model), revision=revision)
    if checkpoint.tokenizer is None:
        raise InputError(f"{model}: {NONE}; put one beside the weights")
    return checkpoint.tokenizer


def call_settings(source: TokenizerSource) -> dict[str, Any]:
    """The arguments of a tokenizer that the tokenizer_config.json beside it states, such as padding_side.

    Raises TokenizerError if it cannot be read.
    """
    if isinstance(source, GGUFVocabulary) or (isinstance(source, TokenizerFile) and source.content is not None):
        return {}
    folder = source.path if isinstance(source, TokenizerFolder) else source.path.parent
    stated = read_object(folder / "tokenizer_config.json")
    found = {name: stated[name] for name in _SETTINGS if stated.get(name) is not None}
    if isinstance(found.get("model_max_length"), float):  # 1e30 stands for "no limit"
        found["model_max_length"] = int(found["model_max_length"])
    return found


def save_tokenizer(source: TokenizerFile | GGUFVocabulary, folder: str | os.PathLike[str]) -> Path:
    """Write the tokenizer's file into a folder, which is made if needed, and return its path.

    An existing file is replaced in one step. The name is one that `find_tokenizer` knows: `tekken_240718.json` becomes
    `tekken.json`, `mistral_instruct.model.v3` becomes `tokenizer.model.v3`. Raises InputError if `folder` is a file,
    OSError if the file cannot be written or the tokenizer's own file is gone.
    """
    if isinstance(source, TokenizerFile):
        name, content = source.path.name, source.read()
    else:
        name, content = to_file(source)
    if tokenizer_name([name]) is None:
        name = "tekken.json" if name.endswith(".json") else f"tokenizer{name[name.index('.model') :]}"
    target = made_folder(folder)
    with TemporaryDirectory(dir=target) as scratch:
        Path(scratch, name).write_bytes(content)
        os.replace(Path(scratch, name), target / name)
    return target / name


def made_folder(path: str | os.PathLike[str]) -> Path:
    """A folder, which is made if needed. Raises InputError if it is a file, OSError if it cannot be made."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; pass a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def upload_file(file: Path, repository: str, *, token: str | bool | None, private: bool | None, **commit: Any) -> str:
    """Upload a file to a repository of the hub, which is made if needed, and return the commit's address.

    commit: arguments of `HfApi.upload_file`. Raises CheckpointError without access or network.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        return str(api.upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id=name, **commit))
    except Exception as error:  # OSError, or an error of requests, httpx or httpx2, by version
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{repository}: the upload failed: {reason}; check the name and `hf auth login`"
        ) from error

"""open_checkpoint: from what a user types to the reader that understands it."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from mistral_portable.errors import CheckpointError
from mistral_portable.weights.gguf import open_gguf, refuse_split
from mistral_portable.weights.quantize import quantized, require_quantizable
from mistral_portable.weights.safetensors import INDEX, open_safetensors, weight_files
from mistral_portable.weights.source import Checkpoint, map_file

__all__ = ["open_checkpoint"]

# Both parts of a name begin and end with a letter or digit, so that "./model" and "../model" are no names.
_PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?"
_HUB = re.compile(rf"({_PART}/{_PART})(?::([^:]+\.gguf))?", re.ASCII)


def open_checkpoint(
    model: str | Path,
    *,
    revision: str | None = None,
    quantize: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Checkpoint:
    """Open a checkpoint lazily: files are mapped and their headers checked, weights are read when asked for.

    Args:
        model: A path that exists, or else a name on the hub; one of
            - "tiny": the model embedded in this package (a folder of that name is "./tiny" or a Path);
            - a folder with `config.json` and safetensors files, or with one GGUF file;
            - a `.safetensors` file (its folder has the `config.json`) or a `.gguf` file;
            - "owner/name": a repository of the Hugging Face hub with HF safetensors;
            - "owner/name:file.gguf": one GGUF file of a repository.
        revision: Branch, tag or commit of a hub repository; None is its main branch.
        quantize: A ggml type ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0") that float matrices get as they are read.
        progress: Called while downloading, with (file name or description, bytes done, bytes in total).

    Raises:
        CheckpointError: Nothing is there, or it is unreadable, incomplete, corrupt or of an unknown format.
        ConfigError: The configuration holds an impossible or unsupported value.
        InputError: `quantize` is no such type, or no tensor of the model could be of it.
    """
    if quantize is not None:
        require_quantizable(quantize)
    checkpoint = _open(model, revision, progress)
    return replace(checkpoint, tensors=quantized(checkpoint.tensors, quantize)) if quantize else checkpoint


def _open(model: str | Path, revision: str | None, progress: Callable[[str, int, int], None] | None) -> Checkpoint:
    if model == "tiny" and revision is None:
        return _open_folder(Path(str(files("mistral_portable") / "assets" / "tiny")))
    if model == "tiny" or os.path.exists(model):
        if revision is not None:
            raise CheckpointError(f"revision={revision!r} is for hub repositories; {model} is none")
        return _open_local(Path(model))
    match = _HUB.fullmatch(str(model))
    if match is None:
        raise CheckpointError(
            f"{str(model)!r}: no such file or folder, and no name on the Hugging Face hub "
            "(owner/name or owner/name:file.gguf)"
        )
    from mistral_portable.weights.hub import download

    repository, file = match.groups()
    if file is None:
        return open_safetensors(download(repository, None, revision, progress))
    refuse_split(file)
    return open_gguf(download(repository, file, revision, progress))


def _open_local(path: Path) -> Checkpoint:
    if path.is_dir():
        return _open_folder(path)
    head = map_file(path)[:9]
    if head[:4] == b"GGUF":
        return open_gguf(path)
    if _is_raw(path.name):
        raise CheckpointError(f"{path}: {_RAW_MESSAGE}")
    if head[8:9] == b"{":  # safetensors: the size of a JSON header, then the header
        return open_safetensors(path.parent, path)
    raise CheckpointError(f"{path}: neither GGUF nor safetensors; other formats are not supported")


def _open_folder(folder: Path) -> Checkpoint:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error
    hf = [INDEX] if INDEX in names else [path.name for path in weight_files(folder)]
    ggufs = [name for name in names if name.endswith(".gguf")]
    if hf and not ggufs:
        return open_safetensors(folder)
    if len(ggufs) == 1 and not hf:
        return open_gguf(folder / ggufs[0])
    if ggufs:
        refuse_split(ggufs[0])
        raise CheckpointError(
            f"{folder}: several checkpoints: {', '.join([*hf, *ggufs])}; give the path of one GGUF file, "
            "or move the GGUF files elsewhere"
        )
    if any(map(_is_raw, names)):
        raise CheckpointError(f"{folder}: {_RAW_MESSAGE}")
    raise CheckpointError(f"{folder}: holds no *.safetensors and no *.gguf file")


_RAW_MESSAGE = (
    "Mistral's own format (params.json and consolidated.*) is not supported yet; "
    "use the HF (config.json and *.safetensors) or the GGUF version of the model"
)


def _is_raw(name: str) -> bool:
    return name == "params.json" or name.startswith("consolidated")

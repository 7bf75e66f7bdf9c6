"""open_checkpoint(): finds the files of a model and the reader of their format."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mistral_portable.errors import CheckpointError, InputError
from mistral_portable.weights.adapter_files import adapter_files, explain, is_gguf_adapter
from mistral_portable.weights.archive import is_tar, is_zip
from mistral_portable.weights.gguf import open_gguf, part_names
from mistral_portable.weights.hf_files import weight_names
from mistral_portable.weights.quantize_on_read import BlockMaker, gguf_blocks, quantized, require_quantizable
from mistral_portable.weights.raw import is_consolidated, open_raw, open_raw_tar
from mistral_portable.weights.safetensors import open_safetensors
from mistral_portable.weights.source import Checkpoint, listing, map_file

__all__ = ["HUB_NAME", "open_checkpoint"]

_NOTHING = "{}: holds no *.safetensors, no consolidated.*, no *.gguf file and no pytorch_model.bin"
_ALSO_ADAPTERS = "{0} holds an adapter, too ({1}), which is not used; with --adapter {0}/{2} it is."
_ALSO_RAW = "{0} holds Mistral's own files, too ({1}): Hugging Face's are read; {0}/params.json names the others."

# Owner and name begin and end with a letter or digit, so that "./model" and "../model" do not match.
_PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?"
HUB_NAME = re.compile(rf"({_PART}/{_PART})(?::([^:]+\.gguf))?", re.ASCII)


def open_checkpoint(
    model: str | Path,
    *,
    revision: str | None = None,
    quantize: str | None = None,
    make: BlockMaker = gguf_blocks,
    progress: Callable[[str, int, int], None] | None = None,
    subfolder: str = "",
    hub: Mapping[str, Any] = MappingProxyType({}),
) -> Checkpoint:
    """Open a checkpoint lazily: files are mapped and their headers checked; weights are read on access.

    model: a path that exists, or else a name on the hub; one of
        - "tiny": the model embedded in this package (a folder of that name is "./tiny" or a Path);
        - a folder with `config.json` and safetensors or torch files, with `params.json` and `consolidated.*`, or with
          one GGUF file, whole or split; or its `config.json`, `params.json` or GGUF file, if it holds several of these;
        - a `.safetensors`, `.bin` or `consolidated.*` file with the config in its folder, a `.gguf` file, or a tar of a
          folder with `params.json`;
        - "owner/name": a repository of the Hugging Face hub with HF safetensors or torch files, or else with
          `params.json` and `consolidated.*`;
        - "owner/name:file.gguf": a GGUF file of a repository, or any part of a split one.
    revision: branch, tag or commit of a hub repository; None: its main branch.
    quantize: a ggml type ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0") into which float matrices are packed when read.
    make: the function that makes these blocks.
    progress: called while downloading, as (file name or description, bytes done, bytes in total).
    subfolder: the part of a folder or of a repository that holds the checkpoint. hub: more arguments of
    `huggingface_hub.snapshot_download`, such as `token` and `cache_dir`, for a repository.

    Raises CheckpointError if there is no such model, or if it is unreadable, incomplete, corrupt or of an unknown
    format; ConfigError for an impossible or unsupported value of the configuration; InputError if `quantize` is another
    type, or fits no tensor of the model.
    """
    if quantize is not None:
        require_quantizable(quantize)
    checkpoint = _open(model, revision, progress, subfolder, hub)
    return replace(checkpoint, tensors=quantized(checkpoint.tensors, quantize, make)) if quantize else checkpoint


def _open(
    model: str | Path,
    revision: str | None,
    progress: Callable[[str, int, int], None] | None,
    subfolder: str,
    hub: Mapping[str, Any],
) -> Checkpoint:
    if not isinstance(model, str | Path):
        raise InputError(f"model={model!r:.40} must be a name or a path")
    if model == "tiny" and revision is None:
        return _open_folder(Path(str(files("mistral_portable") / "assets" / "tiny")) / subfolder)
    if model == "tiny" or os.path.exists(model):
        if revision is not None:
            raise CheckpointError(f"revision={revision!r} is for hub repositories; {model} is not one")
        return _open_local(Path(model) / subfolder)
    if os.path.islink(model):
        raise CheckpointError(f"{model}: a link to {os.readlink(model)}, which is not there: make it anew")
    match = HUB_NAME.fullmatch(str(model))
    if match is None:
        raise CheckpointError(
            f"{str(model)!r}: no such file or folder, and no name on the Hugging Face hub "
            "(owner/name or owner/name:file.gguf)"
        )
    from mistral_portable.weights.hub import download

    repository, file = match.groups()
    return _open_local(download(repository, file, revision, progress, subfolder=subfolder, **hub))


def _open_local(path: Path) -> Checkpoint:
    if path.is_dir():
        return _open_folder(path)
    if path.name == "params.json":
        return open_raw(path.parent)
    if path.name == "config.json":
        return open_safetensors(path.parent)
    if adapter_files([path.name]):
        raise CheckpointError(explain(path))
    data = map_file(path)
    if data[:4] == b"GGUF":
        return open_gguf(path)
    if is_tar(data):
        return open_raw_tar(path)
    if is_zip(data) or data[8:9] == b"{":  # torch, or safetensors: the size of a JSON header, then the header
        alone = (path.parent / "params.json").exists() and not (path.parent / "config.json").exists()
        raw = is_consolidated(path.name) or alone
        return open_raw(path.parent, path) if raw else open_safetensors(path.parent, path)
    raise CheckpointError(
        f"{path}: no GGUF, safetensors or torch file and no tar of one; other formats are not supported"
    )


def _open_folder(folder: Path) -> Checkpoint:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error
    hf, adapters = weight_names(names), adapter_files(names)
    raw = [name for name in names if is_consolidated(name)]
    if raw and "config.json" not in names:
        hf = []
    ggufs = sorted({part_names(name)[0] for name in names if name.endswith(".gguf") and part_names(name)})
    if len(ggufs) + bool(hf or raw) > 1:
        own = [name for name in ggufs if is_gguf_adapter(folder / name)]
        adapters, ggufs = adapters + own, [name for name in ggufs if name not in own]
    if len(ggufs) + bool(hf or raw) > 1:
        raise CheckpointError(
            f"{folder}: several checkpoints: {', '.join([*hf, *raw, *ggufs])}; give the path of one GGUF file, of "
            "config.json for Hugging Face's weights, or of params.json for Mistral's own"
        )
    notices = [_ALSO_RAW.format(folder, listing(raw))] if hf and raw else []
    notices += [_ALSO_ADAPTERS.format(folder, listing(adapters), adapters[0])] if adapters else []
    if hf:
        checkpoint = open_safetensors(folder)
    elif raw:
        checkpoint = open_raw(folder)
    elif ggufs:
        checkpoint = open_gguf(folder / ggufs[0])
    elif adapters:
        raise CheckpointError(explain(folder))
    else:
        raise CheckpointError(_NOTHING.format(folder))
    return replace(checkpoint, notices=(*checkpoint.notices, *notices))

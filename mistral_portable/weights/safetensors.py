"""HF checkpoints: `config.json` and one or more safetensors or torch files, mapped lazily."""

import contextlib
import re
from collections.abc import Collection
from pathlib import Path

from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError, TokenizerError
from mistral_portable.tokenizer.folder import read_object
from mistral_portable.tokenizer.source import TokenizerFile, TokenizerFolder
from mistral_portable.weights.adapter_files import refuse_adapter_tensors
from mistral_portable.weights.archive import is_zip
from mistral_portable.weights.experts import split_experts
from mistral_portable.weights.generation_config import end_ids, read_generation_config
from mistral_portable.weights.hf_files import read_index, weight_names
from mistral_portable.weights.hf_quantized import combine_packed, quantization
from mistral_portable.weights.kinds import check_kind
from mistral_portable.weights.names import from_hf
from mistral_portable.weights.safetensors_file import read_safetensors
from mistral_portable.weights.source import Checkpoint, DenseTensor, map_file
from mistral_portable.weights.stored_head import stored_head
from mistral_portable.weights.torch_file import read_torch
from mistral_portable.weights.windows import inferred_windows

__all__ = ["hf_config", "open_safetensors", "tokenizer_in", "tokenizer_name"]

_TOKENIZER = re.compile(r"tokenizer\.model(?:\.v(\d{1,3})(?:m(\d{1,3}))?)?", re.ASCII)


def open_safetensors(folder: Path, file: Path | None = None) -> Checkpoint:
    """Open an HF folder: `config.json` and the weight files that `hf_files` finds. file: the only weight file to read.

    Raises CheckpointError for missing shards, corrupt files and tensors stored twice; ConfigError for models of other
    architectures.
    """
    config, inferred = hf_config(folder / "config.json")
    stored, metadata, format = _stored(folder, file)
    refuse_adapter_tensors(stored, file or folder)
    how = quantization(config, folder, stored)
    split = split_experts(stored, config.num_local_experts, str(folder))
    tensors, unpacked = combine_packed(split, how, str(folder))
    config, tensors, own_head = stored_head(config, tensors, str(folder))
    stated, unread = read_generation_config(folder)
    notices = inferred + unpacked + own_head + unread
    tokenizer = tokenizer_in(folder)
    return Checkpoint(folder, format, config, tensors, tokenizer, notices, metadata, end_ids(stated), generation=stated)


def _stored(folder: Path, file: Path | None) -> tuple[dict[str, DenseTensor], dict[str, str], str]:
    """All tensors by HF name, the metadata of safetensors files, and the `Checkpoint.format`.

    Tensors that an index forgets are read, too.
    """
    names = [path.name for path in folder.iterdir()]
    files, index = ([file], {}) if file else read_index(folder, weight_names(names))
    stored: dict[str, DenseTensor] = {}
    where: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    format = "safetensors"
    for shard in files:
        data = map_file(shard)
        if is_zip(data) or shard.suffix == ".bin":
            format, of_shard = "torch", read_torch(data, str(shard))
        else:
            header, of_shard = read_safetensors(data, str(shard))
            metadata |= header
        for tensor in of_shard:
            if index.get(tensor.name, shard.name) != shard.name:
                continue
            name = from_hf(tensor.name)
            if name in where:
                raise CheckpointError(f"{name!r} is stored twice: in {where[name]} and in {shard}")
            stored[name] = DenseTensor(name, tensor.dtype, tensor.array)
            where[name] = shard
    return stored, metadata, format


def hf_config(path: Path) -> tuple[MistralConfig, tuple[str, ...]]:
    """The config in a `config.json`, and notices. Raises CheckpointError if it is missing, ConfigError as usual."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; weights need the config.json of their repository")
    with contextlib.suppress(TokenizerError):  # what cannot be read is told of below
        check_kind(read_object(path), str(path))
    config = MistralConfig.from_file(path)
    return inferred_windows(config, stated=True)


def tokenizer_in(folder: Path) -> TokenizerFile | TokenizerFolder | None:
    """The tokenizer in a folder; None if it has no file of one."""
    name = tokenizer_name([path.name for path in folder.iterdir() if path.is_file()])
    if name:
        return TokenizerFile(folder / name)
    return TokenizerFolder(folder) if (folder / "tokenizer.json").is_file() else None


def tokenizer_name(names: Collection[str]) -> str | None:
    """The tokenizer file among the names in a folder: `tekken.json`, else the last version of `tokenizer.model*`.

    >>> tokenizer_name(["tokenizer.model", "tokenizer.model.v3", "tokenizer.model.bak"])
    'tokenizer.model.v3'
    """
    if "tekken.json" in names:
        return "tekken.json"
    versions = {name: match for name in names if (match := _TOKENIZER.fullmatch(name))}
    return max(versions, key=lambda name: [int(number or 0) for number in versions[name].groups()], default=None)

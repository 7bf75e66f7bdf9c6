"""Mistral's own checkpoints: `params.json` and `consolidated.*`, in a folder or in a tar.

Rows of q and k are stored for interleaved RoPE. Safetensors files (`consolidated.safetensors`, or several) hold whole
tensors. Several torch files (`consolidated.00.pth`, `consolidated.01.pth`, ...) either hold one piece of each tensor,
one file per GPU, or different whole tensors, as those of Mixtral's first release.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError
from mistral_portable.tokenizer.source import TokenizerFile
from mistral_portable.weights.adapter_files import refuse_adapter_tensors
from mistral_portable.weights.archive import is_zip, tar_members
from mistral_portable.weights.experts import split_experts
from mistral_portable.weights.hf_quantized import combine_packed, normal_settings
from mistral_portable.weights.joined import JoinedTensor
from mistral_portable.weights.names import from_raw, half_split
from mistral_portable.weights.safetensors import tokenizer_name
from mistral_portable.weights.safetensors_file import read_safetensors
from mistral_portable.weights.source import Buffer, Checkpoint, DenseTensor, Tensor, map_file
from mistral_portable.weights.stored_head import stored_head
from mistral_portable.weights.torch_file import read_torch

__all__ = ["is_consolidated", "open_raw", "open_raw_tar"]

_TORCH = (".pth", ".pt")
_COLUMNS_SPLIT = ("o_proj", "down_proj", "w2")  # row-parallel linears: each GPU has a range of the inputs


def is_consolidated(name: str) -> bool:
    """Whether a file of this name holds raw weights: `consolidated.00.pth`, `consolidated.safetensors`."""
    return name.startswith("consolidated") and name.endswith((*_TORCH, ".safetensors"))


def open_raw(folder: Path, file: Path | None = None) -> Checkpoint:
    """Open a raw checkpoint: `params.json` and the `consolidated` files of a folder.

    file: a weight file, of any name, to read in place of the folder's; if it is one of several `consolidated` files,
    all with its suffix are read.

    Raises CheckpointError for missing, corrupt or ambiguous files; ConfigError for unsupported parameters.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error
    weights = [name for name in names if is_consolidated(name)]
    if file is not None:
        same_kind = [name for name in weights if name.endswith(file.suffix)]
        weights = same_kind if file.name in same_kind else [file.name]
    tokenizer = tokenizer_name([name for name in names if (folder / name).is_file()])
    source = TokenizerFile(folder / tokenizer) if tokenizer else None
    if "params.json" not in names:
        raise CheckpointError(f"{folder / 'params.json'}: missing; consolidated weights need it")
    return _open(
        folder, bytes(map_file(folder / "params.json")), {name: map_file(folder / name) for name in weights}, source
    )


def open_raw_tar(path: Path) -> Checkpoint:
    """Open a tar that holds a raw checkpoint; its members are read in place, and nothing is extracted.

    Raises the errors of `open_raw`, and CheckpointError for damaged archives, links and paths that leave the archive.
    """
    try:
        members = tar_members(map_file(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    folders = [str(PurePosixPath(name).parent) for name in members if PurePosixPath(name).name == "params.json"]
    if len(folders) != 1:
        raise CheckpointError(f"{path}: holds {len(folders)} params.json, one is needed: the tar of a raw checkpoint")
    prefix = "" if folders[0] == "." else f"{folders[0]}/"
    files = {name.removeprefix(prefix): content for name, content in members.items() if name.startswith(prefix)}
    tokenizer = tokenizer_name([name for name in files if "/" not in name])
    source = TokenizerFile(path / prefix / tokenizer, files[tokenizer]) if tokenizer else None
    weights = {name: content for name, content in files.items() if is_consolidated(name)}
    return _open(path, bytes(files["params.json"]), weights, source)


def _open(path: Path, params: bytes, weights: Mapping[str, Buffer], tokenizer: TokenizerFile | None) -> Checkpoint:
    config = MistralConfig.from_json(params, f"{path}/params.json")
    if not weights:
        raise CheckpointError(f"{path}: holds params.json, but no consolidated.*.pth or consolidated*.safetensors")
    torch_files = {name: data for name, data in weights.items() if is_zip(data)}
    metadata: dict[str, str] = {}
    if not torch_files:
        stored, metadata = _safetensors(path, weights)
    elif len(torch_files) == len(weights):
        stored = _torch(path, config, torch_files)
    else:
        raise CheckpointError(f"{path}: several checkpoints: {', '.join(weights)}; give the path of the one to read")
    refuse_adapter_tensors(stored, path / next(iter(weights)) if len(weights) == 1 else path)
    tensors, notices = _combine(split_experts(stored, config.num_local_experts, str(path)), config, str(path))
    config, tensors, own_head = stored_head(config, tensors, str(path))
    tensors = {name: half_split(tensor, config) for name, tensor in tensors.items()}
    return Checkpoint(path, "raw", config, tensors, tokenizer, notices + own_head, metadata)


def _safetensors(path: Path, weights: Mapping[str, Buffer]) -> tuple[dict[str, Tensor], dict[str, str]]:
    stored: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file, data in weights.items():
        header, tensors = read_safetensors(data, f"{path}/{file}")
        metadata |= header
        for tensor in tensors:
            name = from_raw(tensor.name)
            if name in stored:
                raise CheckpointError(f"{path}: {tensor.name!r} is stored twice, the second time in {file}")
            stored[name] = DenseTensor(name, tensor.dtype, tensor.array)
    return stored, metadata


def _combine(
    stored: Mapping[str, Tensor], config: MistralConfig, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Combine packed matrices with their scales, as `params.json` announces them; returns all tensors, and notices."""
    given = config.extra.get("quantization") or config.extra.get("quantization_config")
    fp8 = isinstance(given, Mapping) and given.get("qformat_weight") == "fp8_e4m3"
    how = {"quant_method": "fp8"} if fp8 else normal_settings(given, f"{source}/params.json") if given else {}
    whole = {name: tensor for name, tensor in stored.items() if isinstance(tensor, DenseTensor)}
    combined, notices = combine_packed(whole, how, source)
    joined = {name: tensor for name, tensor in stored.items() if name not in whole}
    return joined | combined, notices


def _torch(path: Path, config: MistralConfig, files: Mapping[str, Buffer]) -> dict[str, Tensor]:
    pieces: dict[str, list[DenseTensor]] = {}
    for file, data in sorted(files.items()):
        for tensor in read_torch(data, f"{path}/{file}"):
            pieces.setdefault(from_raw(tensor.name), []).append(tensor)
    whole = all(len(some) == 1 for some in pieces.values())
    lacking = [name for name, some in pieces.items() if len(some) != len(files)]
    if lacking and not whole:
        raise CheckpointError(
            f"{path}: {lacking[0]!r} is in some of {', '.join(sorted(files))} only; each needs a piece"
        )
    return {name: _joined(path, name, some, config) for name, some in pieces.items()}


def _joined(path: Path, name: str, pieces: Sequence[DenseTensor], config: MistralConfig) -> Tensor:
    first = pieces[0]
    if len(pieces) == 1:
        return DenseTensor(name, first.dtype, first.array)
    if len(first.shape) == 1:  # norms: every GPU has a copy
        if any(piece.shape != first.shape or piece.array.tobytes() != first.array.tobytes() for piece in pieces):
            raise CheckpointError(f"{path}: the copies of {name!r} differ")
        return DenseTensor(name, first.dtype, first.array)
    module = name.removesuffix(".weight").rpartition(".")[2]
    narrow = module == "embed_tokens" and first.shape[-1] != config.hidden_size
    axis = 1 if module in _COLUMNS_SPLIT or narrow else 0
    if any(
        piece.dtype != first.dtype or len(piece.shape) != 2 or piece.shape[1 - axis] != first.shape[1 - axis]
        for piece in pieces
    ):
        shapes = ", ".join(f"{piece.dtype} {piece.shape}" for piece in pieces)
        raise CheckpointError(f"{path}: the pieces of {name!r} do not fit together: {shapes}")
    return JoinedTensor(name, tuple(pieces), axis)

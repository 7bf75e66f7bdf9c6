"""llama.cpp's adapters: GGUF files with `general.type` "adapter".

Source of the format: llama.cpp's `convert_lora_to_gguf.py` and `llama-adapter.cpp`, `.h`. A tensor `NAME.lora_a` is
the down matrix of the weight NAME, `NAME.lora_b` the up matrix; that of token_embd has lora_a as [vocab_size, rank].
Rows of q and k are stored for interleaved RoPE, as in models.
"""

from pathlib import Path

import numpy as np

from mistral_portable.adapters.adapter import Adapter
from mistral_portable.adapters.pieces import TABLE, Piece, assemble
from mistral_portable.adapters.rows import half_split_rows
from mistral_portable.adapters.settings import number
from mistral_portable.config import MistralConfig
from mistral_portable.config.checks import show
from mistral_portable.errors import CheckpointError
from mistral_portable.weights.blocks import QUANTIZED, QuantTensor
from mistral_portable.weights.gguf_file import StoredTensor, read_gguf
from mistral_portable.weights.names import from_gguf
from mistral_portable.weights.source import DENSE, DenseTensor

__all__ = ["open_gguf_adapter"]

_ARCHITECTURES = ("llama", "mistral3")
_TYPE, _ALPHA, _ALORA = "adapter.type", "adapter.lora.alpha", "adapter.alora.invocation_tokens"


def open_gguf_adapter(path: Path, config: MistralConfig) -> Adapter:
    """Open an adapter in a GGUF file. config: the model's.

    The scale is alpha / rank, with the rank of each tensor; 1 if alpha is 0 or missing.

    Raises CheckpointError for settings, tensors and values that are not supported or do not fit.
    """
    file = read_gguf(path)
    for key, allowed in (("general.type", ("adapter",)), ("general.architecture", _ARCHITECTURES), (_TYPE, ("lora",))):
        if file.scalars.get(key) not in allowed:
            raise CheckpointError(f"{path}: {key}={show(file.scalars.get(key))}: {' and '.join(allowed)} can be read")
    if len(file.arrays.get(_ALORA, ())):
        raise CheckpointError(f"{path}: activated LoRA ({_ALORA}) is not supported; use a plain adapter")
    alpha = number(path, _ALPHA, file.scalars.get(_ALPHA, 0.0))
    pieces = [_piece(path, tensor, config) for tensor in file.tensors]
    return assemble(path, pieces, path.stat().st_size, config, lambda weight, rank: alpha / rank if alpha else 1.0)


def _piece(path: Path, stored: StoredTensor, config: MistralConfig) -> Piece:
    name, _, kind = stored.name.rpartition(".")
    tensor = _tensor(path, stored)
    if kind not in ("lora_a", "lora_b"):
        return Piece(stored.name, "whole", tensor)  # `assemble` says what is wrong with it
    weight = from_gguf(name)
    if kind == "lora_b":
        return Piece(weight, "up", half_split_rows(tensor, weight, config))
    return Piece(weight, "down", tensor, transposed=weight == TABLE)


def _tensor(path: Path, stored: StoredTensor) -> DenseTensor | QuantTensor:
    kind = stored.type.name
    if kind in DENSE:
        dtype, numpy_type = DENSE[kind]
        return DenseTensor(stored.name, dtype, stored.data.view(numpy_type).reshape(stored.shape))
    if kind not in QUANTIZED:
        supported = ", ".join([*DENSE, *sorted(QUANTIZED)])
        raise CheckpointError(f"{path}: {stored.name!r:.120} has the type {kind}; {supported} can be read")
    rows = int(np.prod(stored.shape[:-1]))
    return QuantTensor(stored.name, stored.shape, stored.type, stored.data.reshape(rows, -1))

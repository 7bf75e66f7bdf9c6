"""Reads the importance matrices that llama.cpp's `llama-imatrix` writes: GGUF files, and its older `.dat` files.

GGUF: for each matrix, by its GGUF name, `NAME.in_sum2` float32 [experts or 1, columns], the sums of squared inputs, and
`NAME.counts` float32 [experts or 1, 1], the number of inputs in each sum. The columns of an expert without inputs all
have the importance 1.

Older, little-endian: int32 number of entries; per entry int32 length and the name, int32 calls, int32 number of values,
float32 mean squares times calls, one expert after the other; then, optionally, a description of the text.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import CheckpointError, InputError
from mistral_portable.quantization.importance import Importance, relative
from mistral_portable.weights.experts import expert_names
from mistral_portable.weights.gguf_file import read_gguf
from mistral_portable.weights.names import from_gguf
from mistral_portable.weights.source import map_file

__all__ = ["read_imatrix"]

_SUMS, _COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: Path, experts: int) -> Importance:
    """The importances in a file, by HF name. experts: the model's number of experts per layer, 0 for a dense model.

    Raises InputError, which names the file, if it is no importance matrix or a damaged one.
    """
    found: dict[str, NDArray[np.float32]] = {}
    try:
        data = map_file(path)
        with np.errstate(all="ignore"):  # `relative` refuses values that are not finite
            for name, squares in _gguf(path) if data[:4] == b"GGUF" else _older(memoryview(data)):
                names = expert_names(name, experts) or [from_gguf(name)]
                if squares.size == 0 or squares.size % len(names):
                    raise ValueError(f"{name!r:.100} has {squares.size} numbers, of {len(names)} matrices")
                found |= zip(names, map(relative, squares.reshape(len(names), -1)), strict=True)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    except ValueError as error:
        raise InputError(f"{path}: not an importance matrix of llama.cpp: {error}") from error
    return found


def _gguf(path: Path) -> Iterator[tuple[str, NDArray[np.float64]]]:
    tensors = {tensor.name: tensor for tensor in read_gguf(path).tensors}
    if not any(name.endswith(_SUMS) for name in tensors):
        raise ValueError(f"it is a GGUF file without any {_SUMS}: llama-imatrix makes one")
    for name, tensor in tensors.items():
        if not name.endswith(_SUMS):
            continue
        module = name.removesuffix(_SUMS)
        counts = tensors.get(module + _COUNTS)
        if counts is None or (tensor.type.name, counts.type.name) != ("F32", "F32"):
            raise ValueError(f"{name!r:.100} is not of float32, with {_COUNTS} of float32 beside it")
        sums, of = tensor.data.view(np.float32), counts.data.view(np.float32)[:, None]
        if sums.size % of.size:
            raise ValueError(f"{module!r:.100} has {sums.size} sums and {of.size} counts")
        rows = sums.reshape(of.size, -1).astype(np.float64)
        yield module, np.where(of > 0, rows / np.where(of > 0, of, 1), 1.0)


def _older(data: memoryview) -> Iterator[tuple[str, NDArray[np.float64]]]:
    at = 0

    def take(size: int) -> memoryview:
        nonlocal at
        at += size
        if size < 0 or at > len(data):
            raise ValueError(f"it is truncated, or something else: byte {at} is needed of {len(data)}")
        return data[at - size : at]

    def number() -> int:
        return int(struct.unpack("<i", take(4))[0])

    count = number()
    if count < 1:
        raise ValueError(f"it has {count} entries")
    for _ in range(count):
        name = bytes(take(number())).decode()
        calls = number()
        yield name, np.frombuffer(take(4 * number()), "<f4") / np.float64(max(1, calls))

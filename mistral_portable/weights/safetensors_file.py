"""Reader of the safetensors container, in a mapped file or a member of an archive, with every bound checked.

Layout: uint64 header size (little-endian), a JSON header {name: {dtype, shape, data_offsets}} with an optional
`__metadata__`, then the data, which the tensors fill without gaps or overlaps.
"""

import json
import math
from typing import Any

import numpy as np

from mistral_portable.errors import CheckpointError
from mistral_portable.weights.source import DENSE, Buffer, DenseTensor, listing

__all__ = ["read_safetensors"]

_STORED: dict[str, tuple[str, type[np.generic]]] = DENSE | {
    "BOOL": ("bool", np.bool_),
    "F64": ("float64", np.float64),
    "F8_E4M3": ("float8_e4m3", np.uint8),
    "F8_E5M2": ("float8_e5m2", np.uint8),
    "I8": ("int8", np.int8),
    "I16": ("int16", np.int16),
    "I32": ("int32", np.int32),
    "I64": ("int64", np.int64),
    "U8": ("uint8", np.uint8),
    "U16": ("uint16", np.uint16),
    "U32": ("uint32", np.uint32),
    "U64": ("uint64", np.uint64),
}
"""safetensors' name of a type -> `Tensor.dtype` and NumPy's type, like `source.DENSE`. Whoever opens the checkpoint
refuses types that are neither floats nor parts of packed weights."""

_MAX_HEADER = 2**25  # a checkpoint with 50,000 tensors has a header of 6 MB
_MAX_AXES = 8


def read_safetensors(data: Buffer, source: str) -> tuple[dict[str, str], list[DenseTensor]]:
    """`__metadata__`, and the tensors under their stored names, as views of `data`.

    Raises CheckpointError, which begins with `source`, for invalid files and unknown dtypes.
    """
    try:
        start, header = _header(data)
        metadata = header.pop("__metadata__", None) or {}  # MLX writes null
        if not isinstance(metadata, dict):
            raise ValueError("__metadata__ is not an object")
        entries = [(name, *_entry(name, entry)) for name, entry in header.items()]
        others = [f"{name!r} ({dtype})" for name, dtype, *_ in entries if dtype not in _STORED]
        if others:
            raise CheckpointError(f"{source}: only {', '.join(_STORED)} tensors are known, not {listing(others)}")
        _check_layout(entries, len(data) - start)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: not a complete safetensors file: {error}") from error
    tensors = []
    for name, code, shape, begin, _ in entries:
        dtype, stored = _STORED[code]
        array = np.frombuffer(data, stored, math.prod(shape), start + begin)
        tensors.append(DenseTensor(name, dtype, array.reshape(shape)))
    return {str(key): str(value) for key, value in metadata.items()}, tensors


_Entry = tuple[str, str, tuple[int, ...], int, int]
"""Name, dtype, shape, and the offsets at which its bytes begin and end."""


def _header(data: Buffer) -> tuple[int, dict[str, Any]]:
    """The offset of the data, and the JSON object."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise ValueError(f"it is truncated: a header of {size} bytes in a file of {len(data)}")
    if size > _MAX_HEADER:
        raise ValueError(f"its header has {size} bytes, at most {_MAX_HEADER} are accepted")
    header = json.loads(bytes(data[8 : 8 + size]))
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return 8 + size, header


def _entry(name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if len(shape) <= _MAX_AXES and all(
            type(number) is int and number >= 0 for number in (*shape, begin, end)
        ):
            return dtype, tuple(shape), begin, end
    raise ValueError(f"the entry of {name!r:.100} has no valid dtype, shape and data_offsets")


def _check_layout(entries: list[_Entry], size: int) -> None:
    end = 0
    for name, code, shape, begin, stop in sorted(entries, key=lambda entry: entry[3:]):
        needed = math.prod(shape) * np.dtype(_STORED[code][1]).itemsize
        if begin != end or stop - begin != needed:
            raise ValueError(f"{name!r:.100} has bytes {begin} to {stop}: it needs {needed}, from {end} on")
        end = stop
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, its data at {size}")

"""Reader of the GGUF container: metadata and tensor infos, with every size checked before it is used.

`gguf.GGUFReader` makes several NumPy views per array element (19 s and 0.7 GB for the 131,072 tokens and
269,443 merges of a tekken vocabulary, measured on two slow cores) and trusts every count in the file. This reader
checks each count against the remaining bytes, so a hostile file causes no larger allocation than its own size.

Layout (ggml `docs/gguf.md`, versions 2 and 3, little-endian; a string is its uint64 size and UTF-8 bytes):
"GGUF", uint32 version, uint64 tensors, uint64 entries; per entry: string key, uint32 type, value; per tensor:
string name, uint32 axes, uint64 size of each axis (fastest first), uint32 ggml type, uint64 offset; then data.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import CheckpointError
from mistral_portable.weights.ggml_types import AnyType, stored_type
from mistral_portable.weights.source import map_file

__all__ = ["Array", "GGUFFile", "Scalar", "StoredTensor", "read_gguf"]

Scalar = bool | int | float | str
Array = tuple[bytes, ...] | NDArray[Any]

_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32 = 6
_MAX_AXES = 4  # GGML_MAX_DIMS


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as stored: its GGUF name, its shape with rows first, and its bytes."""

    name: str
    shape: tuple[int, ...]
    type: AnyType
    data: NDArray[np.uint8]
    """Read-only view of the mapped file, one axis."""


@dataclass(frozen=True, eq=False)
class GGUFFile:
    """Metadata and tensors of a GGUF file."""

    scalars: Mapping[str, Scalar]
    """Numbers and strings. A float32 becomes the shortest decimal that rounds to it: 1e-5 stays 1e-5."""
    arrays: Mapping[str, Array]
    """Strings as a tuple of bytes, numbers as a NumPy array."""
    tensors: tuple[StoredTensor, ...]


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of a GGUF file; tensor data is mapped, not read.

    Raises CheckpointError if the file is unreadable, truncated, corrupt or of another version or byte order.
    """
    try:
        return _Walk(map_file(path)).file()
    except ValueError as error:
        raise CheckpointError(f"{path}: not a valid GGUF file: {error}") from error


class _Walk:
    """A parser with a position in the mapped file: each method reads one item. Raises ValueError for invalid files."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def file(self) -> GGUFFile:
        if self.take(4) != b"GGUF":
            raise ValueError("it does not start with 'GGUF'")
        version = self.number("I")
        if version not in (2, 3):
            big_endian = " (a big-endian file)" if version and version % 65536 == 0 else ""
            raise ValueError(f"version {version}{big_endian} is not supported, 2 and 3 are")
        tensors = self.count(smallest=32)
        entries = self.count(smallest=13)
        scalars: dict[str, Scalar] = {}
        arrays: dict[str, Array] = {}
        for _ in range(entries):
            key = self.string().decode()
            if key in scalars or key in arrays:
                raise ValueError(f"the metadata key {key!r} occurs twice")
            kind = self.number("I")
            if kind == _ARRAY:
                arrays[key] = self.array(key)
            else:
                scalars[key] = self.scalar(key, kind)
        infos = [self.info() for _ in range(tensors)]
        alignment = scalars.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment={alignment!r} is not a power of two")
        start = -(-self.at // alignment) * alignment
        stored = tuple(self.tensor(start, *info) for info in infos)
        if len({tensor.name for tensor in stored}) < len(stored):
            raise ValueError("a tensor name occurs twice")
        return GGUFFile(scalars, arrays, stored)

    def require(self, end: int) -> None:
        if end > len(self.data):
            raise ValueError(f"it is truncated: the header goes beyond its {len(self.data)} bytes")

    def take(self, size: int) -> bytes:
        self.at += size
        self.require(self.at)
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, smallest: int) -> int:
        """A number of items. Raises ValueError if the rest of the file cannot hold items of `smallest` bytes each."""
        count: int = self.number("Q")
        if count * smallest > len(self.data) - self.at:
            raise ValueError(f"it is truncated: {count} items announced, {len(self.data) - self.at} bytes left")
        return count

    def string(self) -> bytes:
        return self.take(self.number("Q"))

    def strings(self, count: int) -> tuple[bytes, ...]:
        """That many strings, as `string` reads them, but in a loop of its own: a vocabulary has up to 131,072."""
        data, at, end, found = self.data, self.at, len(self.data) - 8, list[bytes]()
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at > end:
                self.require(at + 8)
            begin = at + 8
            at = begin + unpack(data, at)[0]
            found.append(data[begin:at])
        self.require(at)
        self.at = at
        return tuple(found)

    def scalar(self, key: str, kind: int) -> Scalar:
        if kind == _STRING:
            return self.string().decode(errors="replace")
        if kind not in _NUMBERS:
            raise ValueError(f"the metadata key {key!r} has the unknown type {kind}")
        value: int | float = self.number(_NUMBERS[kind])
        return float(str(np.float32(value))) if kind == _FLOAT32 else value

    def array(self, key: str) -> Array:
        kind = self.number("I")
        if kind == _STRING:
            return self.strings(self.count(smallest=8))
        if kind not in _NUMBERS:
            raise ValueError(f"the metadata key {key!r} is an array of the unsupported type {kind}")
        dtype = np.dtype("<" + _NUMBERS[kind])
        return np.frombuffer(self.take(self.count(smallest=dtype.itemsize) * dtype.itemsize), dtype)

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape with rows first, ggml type, offset."""
        name = self.string().decode()
        axes = self.number("I")
        if not 1 <= axes <= _MAX_AXES:
            raise ValueError(f"tensor {name!r} has {axes} axes, 1 to {_MAX_AXES} are possible")
        sizes = [self.number("Q") for _ in range(axes)]
        return name, tuple(reversed(sizes)), self.number("I"), self.number("Q")

    def tensor(self, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> StoredTensor:
        try:
            ggml_type, block, block_bytes = stored_type(kind)
        except ValueError:
            raise ValueError(f"tensor {name!r} has the unknown ggml type {kind}") from None
        if shape[-1] % block or not math.prod(shape):
            raise ValueError(f"tensor {name!r} has the shape {shape}, which {ggml_type.name} blocks cannot fill")
        size = math.prod(shape) // block * block_bytes
        if start + offset + size > len(self.data):
            raise ValueError(
                f"it is truncated: tensor {name!r} ends at byte {start + offset + size}, the file at {len(self.data)}"
            )
        return StoredTensor(name, shape, ggml_type, np.frombuffer(self.data, np.uint8, size, start + offset))

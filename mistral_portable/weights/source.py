"""Checkpoint and lazy tensors: the result of reading a checkpoint of any format."""

import mmap
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError
from mistral_portable.git_lfs import pointer
from mistral_portable.tokenizer.source import TokenizerSource

__all__ = ["DENSE", "FLOATS", "Buffer", "Checkpoint", "DenseTensor", "Tensor", "listing", "map_file", "release"]

Buffer = mmap.mmap | memoryview
"""A mapped file, or a member of an archive in one."""

DENSE: dict[str, tuple[str, type[np.generic]]] = {
    "F32": ("float32", np.float32),
    "F16": ("float16", np.float16),
    "BF16": ("bfloat16", np.uint16),
}
"""safetensors' and GGUF's name of a float type -> `Tensor.dtype` and NumPy's type (uint16 holds bfloat16's bits)."""

FLOATS = frozenset(name for name, _ in DENSE.values())
"""The values of `Tensor.dtype` for tensors stored as plain floats."""


class Tensor(Protocol):
    """A stored tensor. Nothing is read from the file before `numpy`, `raw` or `blocks` is called."""

    @property
    def name(self) -> str:
        """The canonical HF name, such as `model.layers.0.self_attn.q_proj.weight`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per axis, rows (outputs of a linear layer) first."""

    @property
    def dtype(self) -> str:
        """The stored type: "float32", "float16", "bfloat16", or a packed type: ggml's in lower case ("q4_0", "q6_k"),
        "affine_4bit", "awq_4bit", "compressed_4bit", "gptq_3bit", "float8_e4m3"."""

    @property
    def nbytes(self) -> int:
        """Stored size in bytes."""

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The values as a new array of `shape` and the floating `dtype`; quantized blocks are unpacked."""

    def permute_rows(self, order: NDArray[np.intp]) -> "Tensor":
        """The tensor whose row i is row `order[i]` of this one. Lossless and lazy: applied when it is read."""


@dataclass(frozen=True, eq=False)
class DenseTensor:
    """A float32, float16 or bfloat16 tensor; `array` is usually a view of the mapped file."""

    name: str
    dtype: str
    array: NDArray[Any]
    """The stored values; bfloat16 as uint16, whose bits are the upper half of a float32."""
    order: NDArray[np.intp] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per axis."""
        return self.array.shape

    @property
    def nbytes(self) -> int:
        """Size of the stored values in bytes."""
        return self.array.nbytes

    def raw(self) -> NDArray[Any]:
        """The stored values in C order, bfloat16 as uint16; a read-only view of the file where it has this order."""
        array = self.array if self.order is None else self.array[self.order]
        # Compiled kernels need aligned C-order arrays; safetensors data may be unaligned, and experts transposed.
        return np.require(array, requirements=("C", "A"))

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The values as a new array of the floating `dtype`."""
        return self._widened(self.raw(), dtype)

    def gather(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """The given rows of a matrix, float32 [len(rows), columns]; no other rows are read."""
        return self._widened(self.array[rows if self.order is None else self.order[rows]], np.float32)

    def _widened(self, raw: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
        if self.dtype == "bfloat16":
            return (raw.astype(np.uint32) << 16).view(np.float32).astype(dtype, copy=False)
        return raw.astype(dtype)

    def rows(self, part: slice) -> "DenseTensor":
        """A tensor of a range of the rows; reading it reads no other rows."""
        array = self.array[part if self.order is None else self.order[part]]
        return replace(self, array=array, order=None)

    def permute_rows(self, order: NDArray[np.intp]) -> "DenseTensor":
        """The tensor whose row i is row `order[i]` of this one; applied when it is read."""
        return replace(self, order=order if self.order is None else self.order[order])


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint: its files are mapped, and only their headers have been read."""

    path: Path
    """The folder (safetensors, raw), or the file (GGUF, the first of split ones; a tar of raw weights)."""
    format: str
    """"safetensors" or "torch" (a Hugging Face folder of such files), "gguf" or "raw"."""
    config: MistralConfig
    tensors: Mapping[str, Tensor]
    """By HF canonical name, q and k rows in HF's half-split RoPE layout; not yet compared with the config."""
    tokenizer: TokenizerSource | None
    notices: tuple[str, ...]
    """Sentences to show to the user once, such as about an inferred attention window."""
    metadata: Mapping[str, object]
    """Scalars of the GGUF metadata, or the `__metadata__` of the safetensors files."""
    ends: tuple[int, ...] = ()
    """Ids that end a text beside the config's: of generation_config.json, or GGUF's eot and eom."""
    beside: Path | None = None
    """The folder with the tokenizer's other files, where it is not that of the weights: a merged adapter's."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """The fields of generation_config.json: what its makers say of drawing, in transformers' names."""


def listing(items: Sequence[str]) -> str:
    """Join items for an error message: `a; b; c`, or the first ten and "and 5 more"."""
    more = [f"and {len(items) - 10} more"] if len(items) > 10 else []
    return "; ".join([*items[:10], *more])


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file read-only, without reading it.

    Raises CheckpointError if it is missing, unreadable, empty, not a regular file (a FIFO would hang) or a git-lfs
    pointer.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        if not path.stat().st_size:
            raise CheckpointError(f"{path}: is empty: download it again")
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if said := pointer(data[:1024]):
        raise CheckpointError(f"{path} {said}")
    return data


def release(array: NDArray[Any]) -> None:
    """Release the memory pages of a view of a mapped file (`MADV_DONTNEED`); the array stays valid.

    The next access reads the file, or the system's cached copy of it, again. Does nothing for other arrays, for
    writable mappings, and on systems without this call.
    """
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None or not isinstance(owner, mmap.mmap) or not memoryview(owner).readonly:
        return
    start = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if array.flags.forc and first < last:
        owner.madvise(advice, first, last - first)

"""NumbaQuantizer: quantizes floats to ggml blocks, by the kernels of `kernels/encode.py` on a team of threads."""

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import BackendError, CheckpointError
from mistral_portable.weights import DenseTensor
from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.compiler.objects import LoadedKernels
from mistral_portable_numba.layouts import BLOCKS, ENCODE_SCRATCH
from mistral_portable_numba.team import Team

__all__ = ["NumbaQuantizer"]

_KINDS = {"float32": 0, "float16": 1, "bfloat16": 2}


class NumbaQuantizer:
    """A Quantizer for some block types. Its results do not depend on the number of threads."""

    def __init__(
        self,
        types: Collection[str],
        *,
        isa: Isa,
        threads: int,
        folder: Path,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        if unknown := sorted(set(types) - BLOCKS.keys()):
            raise BackendError(f"backend 'numba' makes no blocks of {', '.join(unknown)}: it makes {', '.join(BLOCKS)}")
        self._kernels = LoadedKernels([f"encode_{type}" for type in types], isa, folder, progress)
        self._teams = {type: Team(threads, self._kernels[f"encode_{type}"]) for type in types}
        self._scratch = np.empty(threads * ENCODE_SCRATCH, np.uint8)

    def blocks(self, rows: DenseTensor, type: str, importance: NDArray[np.float32]) -> NDArray[np.uint8]:
        layout, values = BLOCKS[type], rows.raw()
        count, columns = values.shape
        if values.strides[1] != values.itemsize:
            values = np.ascontiguousarray(values)
        out = np.empty((count, columns // layout.columns * layout.bytes), np.uint8)
        weights = np.ascontiguousarray(importance, np.float32)
        assert weights.shape == (columns,)
        shared = np.zeros(2, np.int64)  # the counter, and 1 if a number does not fit
        arguments = np.array(
            [
                shared.ctypes.data,
                count,
                columns,
                values.ctypes.data,
                values.strides[0],
                _KINDS[rows.dtype],
                weights.ctypes.data,
                out.ctypes.data,
                out.strides[0],
                self._scratch.ctypes.data,
                shared[1:].ctypes.data,
            ],
            np.int64,
        )
        self._teams[type].run(arguments.ctypes.data)
        if shared[1]:
            raise CheckpointError(
                f"{rows.name} holds a number that is not finite, or too large for {type}: the weights are corrupt, or "
                "need a float type"
            )
        return out

    def close(self) -> None:
        for team in self._teams.values():
            team.close()

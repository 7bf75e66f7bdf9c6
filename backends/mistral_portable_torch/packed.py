"""Matrices in planes, which Triton's kernels multiply by any number of tokens."""

import importlib
import warnings
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

from mistral_portable_torch.attempt import Attempt
from mistral_portable_torch.planes import Planes

__all__ = ["Packed", "has_kernels"]


class Packed:
    """Planes of a matrix [O, I]. Few tokens are multiplied by one kernel, some more by a second one; for many, a third
    one unpacks the weights. Where none can be compiled, torch's operations unpack them for every product."""

    def __init__(self, planes: Planes, dtype: torch.dtype) -> None:
        self._planes, self._dtype = planes, dtype
        self.nbytes = planes.nbytes

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return _COMPILED.run(
            x.device,
            lambda: _product(x, self._planes, bias),
            lambda: linear(x, self._planes.weights(self._dtype), bias),
        )

    def gated(self, x: Tensor) -> Tensor | None:
        """x [T, I] -> SwiGLU of the products with gate's rows, which lie above, and up's, [T, O / 2]; None where that
        takes more than one kernel."""
        return _COMPILED.run(x.device, lambda: _gated(x, self._planes), lambda: None)

    def rows(self, tokens: Tensor) -> Tensor:
        return self._unpacked(self._planes[tokens])

    def one_of(self, index: int, count: int) -> "Packed":
        """Matrix `index` of `count` matrices that are stacked by rows."""
        return Packed(self._planes.each(lambda plane: plane.unflatten(0, (count, -1))[index]), self._dtype)

    def some_of(self, indices: Tensor, count: int) -> Tensor:
        """The matrices of the indices [n] among `count` stacked ones, unpacked, [n, O, I]."""
        chosen = self._planes.each(lambda plane: plane.unflatten(0, (count, -1))[indices].flatten(0, 1))
        return self._unpacked(chosen).unflatten(0, (len(indices), -1))

    def _unpacked(self, planes: Planes) -> Tensor:
        """Weights [O, I] in the program's dtype."""
        return _COMPILED.run(
            planes.scales.device, lambda: _unpack(planes, self._dtype), lambda: planes.weights(self._dtype)
        )


_COMPILED = Attempt("quantized weights are unpacked for every token, which is slow")
# This one takes the most shared memory, up to 68 KiB, which a small GPU does not have: Triton says so when it compiles.
_TILES = Attempt("quantized weights are unpacked for every 5 to 64 tokens, which is slow")


def _product(x: Tensor, planes: Planes, bias: Tensor | None) -> Tensor:
    """x [T, I] of the program's dtype, bias [O] -> [T, O], by the kernel for so many tokens."""
    from mistral_portable_torch import gemv, tiles, unpacking

    if len(x) <= gemv.MAX_TOKENS:
        out = gemv.multiply(x, planes)
    elif len(x) <= tiles.MAX_TOKENS and x.dtype in tiles.DTYPES:
        out = _TILES.run(
            x.device, lambda: tiles.multiply(x, planes), lambda: linear(x, unpacking.unpack(planes, x.dtype))
        )
    else:
        return linear(x, unpacking.unpack(planes, x.dtype), bias)
    return out if bias is None else out + bias


def _gated(x: Tensor, planes: Planes) -> Tensor | None:
    from mistral_portable_torch import gemv

    return gemv.multiply(x, planes, gated=True) if len(x) <= gemv.MAX_GATED else None


def _unpack(planes: Planes, dtype: torch.dtype) -> Tensor:
    from mistral_portable_torch import unpacking

    return unpacking.unpack(planes, dtype)


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether ggml blocks are repacked into planes on the device; a warning says why they are not on a GPU."""
    if device.type != "cuda":
        return False
    try:
        importlib.import_module("triton")
    except ImportError as error:
        warnings.warn(
            f"quantized weights are unpacked for every token, which is slow, because Triton is missing ({error}): "
            "pip install triton",
            stacklevel=2,
        )
        return False
    return True

"""Weights on the device: dense matrices and affine groups, read from the tensors of a checkpoint."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import mlx.core as mx

from mistral_portable.boundary.shared import stored_dtype
from mistral_portable.errors import BackendError
from mistral_portable.graph import Graph
from mistral_portable.weights import AffineTensor, BlockTensor, DenseTensor, Tensor, release
from mistral_portable_mlx.ggml import GROUP, LAYOUTS, pack

__all__ = [
    "Affine",
    "Dense",
    "Form",
    "Matrix",
    "form",
    "notice_float32",
    "on_cpu",
    "read_matrix",
    "read_vector",
]

_SLICE = 2**24  # weights that are unpacked from ggml's blocks at a time; each takes a few bytes of scratch


class Matrix(Protocol):
    """A weight [O, I] of a linear or of several experts, or a table of embeddings."""

    def multiply(self, x: mx.array) -> mx.array:
        """x [T, I] -> [T, O]"""

    def rows(self, tokens: mx.array) -> mx.array:
        """tokens [T] -> [T, I]"""

    def gather(self, x: mx.array, chosen: mx.array, count: int, sorted: bool) -> mx.array:
        """Multiply with chosen experts: x [T, 1 or k, 1, I], chosen [T, k] -> [T, k, 1, O], or without the axis of k.

        The matrices of `count` experts lie one below the other. sorted: whether those chosen are in rising order.
        """

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """All arrays that it keeps on the device."""


@dataclass(frozen=True)
class Dense:
    """A Matrix of floats: weight [O, I] in the program's dtype."""

    weight: mx.array

    def multiply(self, x: mx.array) -> mx.array:
        return x @ self.weight.T

    def rows(self, tokens: mx.array) -> mx.array:
        return self.weight[tokens]

    def gather(self, x: mx.array, chosen: mx.array, count: int, sorted: bool) -> mx.array:
        matrices = self.weight.reshape(count, -1, self.weight.shape[1]).swapaxes(1, 2)
        if self.weight.dtype == mx.float32 or not on_cpu():
            return mx.gather_mm(x, matrices, rhs_indices=chosen, sorted_indices=sorted)
        # On a CPU, MLX 0.32 gathers matrices of float32 only, so each expert computes all tokens.
        out = x @ matrices[0]
        for index in range(1, count):
            out = mx.where((chosen == index)[..., None, None], x @ matrices[index], out)
        return out

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return (self.weight,)


@dataclass(frozen=True)
class Form:
    """The layout of a matrix on the device. bits: of a code in affine groups of `group` columns; None: dense.

    floats: the type of dense weights, or of the groups' scales and biases.
    """

    floats: mx.Dtype
    bits: int | None = None
    group: int = 0

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a matrix of this shape; each group has a scale and a bias."""
        if self.bits is None:
            return prod(shape) * self.floats.size
        return prod(shape) * self.bits // 8 + prod(shape) // self.group * 2 * self.floats.size


@dataclass(frozen=True)
class Affine:
    """A Matrix of affine groups: codes uint32 [O, I * bits / 32]; scales and biases [O, I / group].

    dtype: of the activations.
    """

    codes: mx.array
    scales: mx.array
    biases: mx.array
    form: Form
    dtype: mx.Dtype

    def multiply(self, x: mx.array) -> mx.array:
        wide, form = x.astype(self.form.floats), self.form
        out = mx.quantized_matmul(wide, self.codes, self.scales, self.biases, group_size=form.group, bits=form.bits)
        return out.astype(self.dtype)

    def gather(self, x: mx.array, chosen: mx.array, count: int, sorted: bool) -> mx.array:
        wide, form = x.astype(self.form.floats), self.form
        codes, scales, biases = (array.reshape(count, -1, array.shape[1]) for array in self.arrays)
        out = mx.gather_qmm(
            *(wide, codes, scales, biases),
            rhs_indices=chosen,
            transpose=True,
            group_size=form.group,
            bits=form.bits,
            sorted_indices=sorted,
        )
        return out.astype(self.dtype)

    def rows(self, tokens: mx.array) -> mx.array:
        codes, scales, biases = (array[tokens] for array in self.arrays)
        return mx.dequantize(codes, scales, biases, group_size=self.form.group, bits=self.form.bits).astype(self.dtype)

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return self.codes, self.scales, self.biases


def form(tensor: Tensor, dtype: mx.Dtype) -> Form:
    """The layout that a stored matrix gets in a program of `dtype`."""
    # A bfloat16 has 8 significant bits, too few for scales that were made with 11: such scales, and so their products,
    # are float32. On a CPU all are: there MLX 0.32.4 sums quantized products in the type of the scales.
    floats = mx.float32 if _narrowed(tensor, dtype) or on_cpu() else dtype
    if isinstance(tensor, AffineTensor):
        return Form(floats, tensor.bits, tensor.group_size)
    if isinstance(tensor, BlockTensor) and tensor.dtype in LAYOUTS:
        return Form(floats, LAYOUTS[tensor.dtype].bits, GROUP)
    return Form(dtype)


def notice_float32(graph: Graph, weights: Mapping[str, Tensor], dtype: mx.Dtype) -> None:
    """Warn of packed matrices that a bfloat16 program multiplies in float32 (see `form`)."""
    parts = [weights[part] for parameter in graph.parameters.values() for part in parameter.parts]
    count = sum(form(part, dtype).bits is not None and _narrowed(part, dtype) for part in parts)
    if count:
        warnings.warn(
            f"{count} matrices are multiplied in float32, as their scales are float16: --dtype float16 multiplies them "
            "in float16, and reads fewer bytes",
            stacklevel=2,
        )


def _narrowed(tensor: Tensor, dtype: mx.Dtype) -> bool:
    return dtype == mx.bfloat16 and stored_dtype([tensor]) != "bfloat16"


def on_cpu() -> bool:
    """Tell whether MLX's default device is a CPU."""
    return mx.default_device().type == mx.DeviceType.cpu


def read_matrix(parts: Sequence[Tensor], dtype: mx.Dtype) -> Matrix:
    """Read the rows of all parts into one matrix, and release the pages of the file.

    Raises BackendError for parts of different forms.
    """
    if len({form(part, dtype) for part in parts}) > 1:
        kinds = ", ".join(sorted({part.dtype for part in parts}))
        raise BackendError(f"{parts[0].name} and the like are of several types ({kinds}): choose backend 'numba'")
    arrays = _stacked([_read(part, dtype) for part in parts])
    mx.eval(arrays)
    kind = form(parts[0], dtype)
    if kind.bits is None:
        return Dense(arrays[0])
    codes, scales, biases = arrays
    return Affine(codes, scales, biases, kind, dtype)


def read_vector(parts: Sequence[Tensor], dtype: mx.Dtype) -> mx.array:
    """Read a norm's weight or a bias, in `dtype`."""
    vector = mx.concatenate([_dense(part, dtype) for part in parts])
    mx.eval(vector)
    return vector


def _read(tensor: Tensor, dtype: mx.Dtype) -> tuple[mx.array, ...]:
    floats = form(tensor, dtype).floats
    if isinstance(tensor, AffineTensor):
        arrays = mx.array(tensor.codes()), _dense(tensor.scales, floats), _dense(tensor.biases, floats)
        mx.eval(arrays)
        release(tensor.packed)
        return arrays
    if isinstance(tensor, BlockTensor) and tensor.dtype in LAYOUTS:
        return _affine(tensor, floats)
    return (_dense(tensor, dtype),)


def _dense(tensor: Tensor, dtype: mx.Dtype) -> mx.array:
    if not isinstance(tensor, DenseTensor):
        return mx.array(tensor.numpy()).astype(dtype)
    stored = mx.array(tensor.raw())
    weight = (stored.view(mx.bfloat16) if tensor.dtype == "bfloat16" else stored).astype(dtype)
    mx.eval(weight)
    release(tensor.array)
    return weight


def _affine(tensor: BlockTensor, floats: mx.Dtype) -> tuple[mx.array, ...]:
    layout = LAYOUTS[tensor.dtype]
    blocks = tensor.blocks()
    rows, columns = tensor.shape
    step = max(1, _SLICE // columns)
    slices = []
    for begin in range(0, rows, step):
        part = mx.array(blocks[begin : begin + step])
        groups = layout.unpack(part.reshape(len(part), -1, layout.bytes))
        codes = pack(groups.codes.reshape(len(part), columns), layout.bits)
        arrays = (codes, *(numbers.reshape(len(part), -1).astype(floats) for numbers in (groups.scales, groups.biases)))
        mx.eval(arrays)
        slices.append(arrays)
    release(blocks)
    return _stacked(slices)


def _stacked(pieces: Sequence[tuple[mx.array, ...]]) -> tuple[mx.array, ...]:
    """Concatenate the arrays of all pieces along axis 0."""
    if len(pieces) == 1:
        return pieces[0]
    return tuple(mx.concatenate(list(arrays)) for arrays in zip(*pieces, strict=True))

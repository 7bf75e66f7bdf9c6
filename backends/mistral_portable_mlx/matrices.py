"""Weights on the device: dense matrices and affine groups, read from a checkpoint's tensors."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import mlx.core as mx

from mistral_portable.errors import BackendError
from mistral_portable.weights import AffineTensor, BlockTensor, DenseTensor, Tensor, release
from mistral_portable_mlx.ggml import GROUP, LAYOUTS, pack

__all__ = ["Affine", "Dense", "Form", "Matrix", "form", "read_matrix", "read_vector", "stored_dtype"]

_FLOATS = ("float32", "float16", "bfloat16")
_SLICE = 2**24  # weights that are taken out of ggml's blocks at a time: its scratch is a few bytes for each


class Matrix(Protocol):
    """A weight [O, I] that activations are multiplied with, or a table that rows are taken from."""

    def multiply(self, x: mx.array) -> mx.array:
        """[T, I] -> [T, O]"""

    def rows(self, tokens: mx.array) -> mx.array:
        """[T] -> [T, I]"""

    def gather(self, x: mx.array, chosen: mx.array, count: int) -> mx.array:
        """Of `count` matrices, one below the other, those of `chosen` [T, k] times x [T, 1 or k, 1, I], [T, k, 1, O]"""

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """All that it keeps on the device."""


@dataclass(frozen=True)
class Dense:
    """weight [O, I] in the program's dtype."""

    weight: mx.array

    def multiply(self, x: mx.array) -> mx.array:
        return x @ self.weight.T

    def rows(self, tokens: mx.array) -> mx.array:
        return self.weight[tokens]

    def gather(self, x: mx.array, chosen: mx.array, count: int) -> mx.array:
        matrices = self.weight.reshape(count, -1, self.weight.shape[1]).swapaxes(1, 2)
        if self.weight.dtype == mx.float32 or not _on_cpu():
            return mx.gather_mm(x, matrices, rhs_indices=chosen)
        out = x @ matrices[0]  # on a CPU, MLX 0.32 gathers matrices of float32 only: each is multiplied with all tokens
        for index in range(1, count):
            out = mx.where((chosen == index)[:, :, None, None], x @ matrices[index], out)
        return out

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return (self.weight,)


@dataclass(frozen=True)
class Form:
    """How a matrix lies on the device. bits None: dense; else affine groups of so many columns.

    floats: the type of its weights, or of the scales and biases of its groups.
    """

    floats: mx.Dtype
    bits: int | None = None
    group: int = 0

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a matrix; a group has a scale and a bias."""
        if self.bits is None:
            return prod(shape) * self.floats.size
        return prod(shape) * self.bits // 8 + prod(shape) // self.group * 2 * self.floats.size


@dataclass(frozen=True)
class Affine:
    """codes uint32 [O, I * bits / 32]; scales, biases [O, I / group]. dtype: of the activations."""

    codes: mx.array
    scales: mx.array
    biases: mx.array
    form: Form
    dtype: mx.Dtype

    def multiply(self, x: mx.array) -> mx.array:
        wide, form = x.astype(self.form.floats), self.form
        out = mx.quantized_matmul(wide, self.codes, self.scales, self.biases, group_size=form.group, bits=form.bits)
        return out.astype(self.dtype)

    def gather(self, x: mx.array, chosen: mx.array, count: int) -> mx.array:
        wide, form = x.astype(self.form.floats), self.form
        codes, scales, biases = (array.reshape(count, -1, array.shape[1]) for array in self.arrays)
        out = mx.gather_qmm(
            wide, codes, scales, biases, rhs_indices=chosen, transpose=True, group_size=form.group, bits=form.bits
        )
        return out.astype(self.dtype)

    def rows(self, tokens: mx.array) -> mx.array:
        codes, scales, biases = (array[tokens] for array in self.arrays)
        return mx.dequantize(codes, scales, biases, group_size=self.form.group, bits=self.form.bits).astype(self.dtype)

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return self.codes, self.scales, self.biases


def form(tensor: Tensor, dtype: mx.Dtype) -> Form:
    """How a stored matrix will lie on the device of a program in `dtype`."""
    # The 8 bits of a bfloat16 are too few for scales that were made with 11: these become float32, as their products.
    # On a CPU all do: MLX adds up quantized products in the type of the scales there (0.32.4: in 11 bits).
    narrowed = dtype == mx.bfloat16 and _float_type(tensor) != "bfloat16"
    floats = mx.float32 if narrowed or _on_cpu() else dtype
    if isinstance(tensor, AffineTensor):
        return Form(floats, tensor.bits, tensor.group_size)
    if isinstance(tensor, BlockTensor) and tensor.dtype in LAYOUTS:
        return Form(floats, LAYOUTS[tensor.dtype].bits, GROUP)
    return Form(dtype)


def _on_cpu() -> bool:
    return mx.default_device().type == mx.DeviceType.cpu


def stored_dtype(tensors: Iterable[Tensor]) -> str:
    """The float type that most of the matrices' bytes belong to; ggml's blocks belong to float16."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) == 2:
            sizes[_float_type(tensor)] += tensor.nbytes
    return sizes.most_common(1)[0][0] if sizes else "float32"


def _float_type(tensor: Tensor) -> str:
    if isinstance(tensor, AffineTensor):
        return tensor.scales.dtype
    if tensor.dtype in _FLOATS:
        return tensor.dtype
    return "bfloat16" if tensor.dtype == "float8_e4m3" else "float16"  # as models and scales of that kind usually are


def read_matrix(parts: Sequence[Tensor], dtype: mx.Dtype) -> Matrix:
    """The rows of all parts, which must have one form, as one matrix. Pages of the file are given back."""
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
    """A norm's weight or a bias."""
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
    """The arrays of all pieces, one below the other."""
    if len(pieces) == 1:
        return pieces[0]
    return tuple(mx.concatenate(list(arrays)) for arrays in zip(*pieces, strict=True))

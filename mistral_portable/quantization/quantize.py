"""quantize(): writes a checkpoint as a quantized GGUF file, a range of rows at a time; the file appears when complete.

Quantization in memory, as a model is loaded, is `weights/quantize_on_read.py`.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions, Quantizer
from mistral_portable.boundary.registry import select_quantizing
from mistral_portable.conversion.gguf import plan_gguf, write_gguf
from mistral_portable.conversion.model import Source, missing_in_target, prepare
from mistral_portable.conversion.parts import (
    FLOATS,
    Part,
    Progress,
    StackedTensor,
    float_part,
    is_float,
    reporter,
    rows_of,
)
from mistral_portable.conversion.target import path_of, placed, require_apart, require_free
from mistral_portable.errors import InputError
from mistral_portable.quantization.calibrate import calibrated
from mistral_portable.quantization.imatrix import read_imatrix
from mistral_portable.quantization.importance import Importance
from mistral_portable.quantization.mixtures import MIXTURES, Mixture, fitting_type
from mistral_portable.weights import DenseTensor, JoinedTensor, Tensor, open_checkpoint, release
from mistral_portable.weights.experts import stacked_name
from mistral_portable.weights.source import listing

__all__ = ["quantize"]

_CHUNK = 2**24  # weights that are quantized at a time: 64 MiB in float32


def quantize(
    source: str | Path,
    destination: str | Path,
    type: str,
    *,
    calibrate: str | Path | None = None,
    imatrix: str | Path | None = None,
    allow_requantize: bool = False,
    threads: int | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint as a GGUF file whose matrices are in ggml blocks; returns the destination.

    source: a model, in every form that `load` takes.
    destination: the file to write; missing parent folders are created.
    type: one of MIXTURES, such as "q4_k_m"; like llama.cpp's mixture of that name, it gives some matrices more bits.
    calibrate: a text file (UTF-8). The model is run on it, and errors in each column of a matrix are weighted by the
    mean square of the column's inputs.
    imatrix: a file of llama.cpp's with such weights, in place of `calibrate`.
    allow_requantize: accept weights that are already quantized; the errors add up.
    threads: CPU threads; by default the physical cores that this process may use.
    overwrite: replace the destination if it is a GGUF file.
    revision: branch, tag or commit of a hub repository.
    progress: called as (what, done, in total).

    Vectors become float32. Memory: the blocks of one tensor and 2^24 of its floats. The file is written into a folder
    beside the destination that ends in ".partial", and moved when it is complete; the folder is removed on errors.
    Notices for the user, such as replaced types, are issued as warnings.

    Raises InputError for a bad argument and for weights that are already quantized; CheckpointError, which names the
    tensor, for weights that are not finite; NumericsError if the model computes NaN on the text; and ConfigError,
    TokenizerError, BackendError or CapacityError.
    """
    if type not in MIXTURES:
        raise InputError(f"type={type!r}: choose one of {', '.join(MIXTURES)}")
    if calibrate is not None and imatrix is not None:
        raise InputError("calibrate and imatrix both give the importance of columns: give one of them")
    mixture, destination = MIXTURES[type], path_of(destination)
    require_free(destination, "gguf", overwrite)
    checkpoint = open_checkpoint(source, revision=revision, progress=progress)
    require_apart(destination, checkpoint.path)
    model = prepare(checkpoint, checkpoint.config, None)
    plan = _plan(model, mixture, calibrate is not None or imatrix is not None)
    if not allow_requantize:
        _require_floats(plan)
    options = ExecutorOptions(threads=threads, progress=progress)
    importance: Importance = {}
    if imatrix is not None:
        importance = read_imatrix(Path(imatrix), model.config.num_local_experts)
        _require_of_this_model(importance, plan, imatrix)
    notices = (*checkpoint.notices, *model.notices, *_replaced(plan), *missing_in_target(model, "gguf"))
    for notice in (*notices, *(_without(importance, plan, imatrix) if imatrix is not None else ())):
        warnings.warn(notice, stacklevel=2)
    if calibrate is not None:
        importance = calibrated(model, Path(calibrate), options)
    types = {choice.type for choice in plan if choice.type not in FLOATS}
    quantizer = select_quantizing().quantizer(types, options)
    try:
        parts = [choice.part_by(quantizer, importance) for choice in plan]
        with placed(destination, "gguf", overwrite) as result:
            write_gguf(result, model, parts, reporter(parts, progress), mixture.file_type)
            prepare(open_checkpoint(result), model.config, None)  # verifies that the written file loads
    finally:
        quantizer.close()
    return destination


@dataclass(frozen=True)
class _Choice:
    """The type for one tensor of the file: a parameter, or the matrices of a layer's experts.

    names: HF names of the matrices. part: the tensor written without quantization. wanted: the type by the mixture.
    type: `wanted`, or its replacement if the rows are no whole blocks of it.
    """

    names: tuple[str, ...]
    part: Part
    wanted: str
    type: str

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The stored tensors, one for each of `names`."""
        tensor = self.part.tensor
        return tensor.tensors if isinstance(tensor, StackedTensor) else (tensor,)

    @property
    def kept(self) -> bool:
        """Whether all tensors already have the type, so that they are copied unchanged."""
        return {self.part.dtype, *(tensor.dtype for tensor in self.tensors)} == {self.type}

    def part_by(self, quantizer: Quantizer, importance: Importance) -> Part:
        """The tensor that will be written: quantized, or converted to floats, or `part` if it is kept."""
        if self.kept:
            return self.part
        if self.type in FLOATS:
            return float_part(self.part.name, self.part.tensor, self.type)
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.type.upper()]]
        *counts, columns = self.part.shape
        alike = np.ones(columns, np.float32)

        def read() -> NDArray[np.uint8]:
            out, done = np.empty((prod(counts), columns // block * size), np.uint8), 0
            for name, tensor in zip(self.names, self.tensors, strict=True):
                for some in _chunks(tensor):
                    out[done : done + some.shape[0]] = quantizer.blocks(some, self.type, importance.get(name, alike))
                    done += some.shape[0]
            return out.reshape(*counts, -1)

        nbytes = prod(self.part.shape) // block * size
        return Part(self.part.name, self.type, self.part.shape, nbytes, read, self.part.tensor)


def _plan(model: Source, mixture: Mixture, calibrated: bool) -> list[_Choice]:
    plan = []
    for names, part in zip(_names(model), plan_gguf(model), strict=True):
        wanted = fitting = part.dtype
        # The router is not quantized: it is small, and its errors would select other experts.
        if len(part.shape) > 1 and not part.name.endswith("ffn_gate_inp.weight"):
            wanted = mixture.type_of(part.name, model.config, calibrated)
            fitting = fitting_type(wanted, part.shape[-1])
        plan.append(_Choice(names, part, wanted, fitting))
    return plan


def _names(model: Source) -> list[tuple[str, ...]]:
    """The HF names of the tensors in each part of `plan_gguf`, in its order."""
    experts: dict[str, list[str]] = defaultdict(list)
    for name in model.tensors:
        if together := stacked_name(name):
            experts[together].append(name)
    return [*((name,) for name in model.tensors if not stacked_name(name)), *map(tuple, experts.values())]


def _require_floats(plan: list[_Choice]) -> None:
    changed = [tensor for choice in plan if not choice.kept for tensor in choice.tensors]
    if packed := [tensor for tensor in changed if not is_float(tensor)]:
        kinds = ", ".join(sorted({tensor.dtype for tensor in packed}))
        raise InputError(
            f"{len(packed)} matrices are quantized already ({kinds}), and errors would add up: quantize the original "
            "model, or allow it (--allow-requantize)"
        )


def _replaced(plan: list[_Choice]) -> Iterator[str]:
    """Notices of types that were replaced because they do not fit the rows."""
    for wanted, type in sorted({(choice.wanted, choice.type) for choice in plan if choice.wanted != choice.type}):
        names = [choice.part.name for choice in plan if (choice.wanted, choice.type) == (wanted, type)]
        yield f"{len(names)} matrices ({names[0]}, ...), whose rows are not whole blocks of {wanted}, become {type}."


def _require_of_this_model(importance: Importance, plan: list[_Choice], path: str | Path) -> None:
    columns = {name: choice.part.shape[-1] for choice in plan for name in choice.names if len(choice.part.shape) > 1}
    if not importance.keys() & columns.keys():
        raise InputError(f"{path}: holds none of this model's matrices, but {listing([*map(repr, importance)])}")
    for name, counted in importance.items():
        if name in columns and counted.size != columns[name]:
            raise InputError(
                f"{path}: belongs to another model: it has {counted.size} columns for {name}, which has {columns[name]}"
            )


def _without(importance: Importance, plan: list[_Choice], path: str | Path) -> Iterator[str]:
    """A notice of matrices without an entry in the importance matrix, usually the output matrix."""
    lacking = [
        choice.part.name
        for choice in plan
        if not choice.kept and choice.type not in FLOATS and choice.part.name != "token_embd.weight"
        if not importance.keys() & set(choice.names)
    ]
    if lacking:
        yield f"{path} has no entry for {listing(lacking)}: all of their columns get the same importance."


def _chunks(tensor: Tensor) -> Iterator[DenseTensor]:
    """The rows as float tensors, a range at a time; the mapped pages of a range are released after its use."""
    rows, columns = tensor.shape
    step = max(1, _CHUNK // columns)
    parts = [slice(begin, begin + step) for begin in range(0, rows, step)]
    if isinstance(tensor, JoinedTensor):
        tensor = tensor.joined()
    if isinstance(tensor, DenseTensor):
        for part in parts:
            some = tensor.rows(part)
            yield some
            release(some.array)
    else:
        read = rows_of(tensor)
        for part in parts:
            yield DenseTensor(tensor.name, "float32", read(part))

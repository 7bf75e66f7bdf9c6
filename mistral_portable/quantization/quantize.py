"""quantize(): a checkpoint as a GGUF file of fewer bits, a range of rows at a time, all of it or nothing."""

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
from mistral_portable.conversion.target import placed, require_apart, require_free
from mistral_portable.errors import InputError
from mistral_portable.quantization.calibrate import calibrated
from mistral_portable.quantization.imatrix import read_imatrix
from mistral_portable.quantization.importance import Importance
from mistral_portable.quantization.mixtures import MIXTURES, Mixture, fitting_type
from mistral_portable.weights import DenseTensor, JoinedTensor, Tensor, open_checkpoint, release
from mistral_portable.weights.experts import stacked_name
from mistral_portable.weights.source import listing

__all__ = ["quantize"]

_CHUNK = 2**24  # numbers that are quantized at a time: 64 MiB in float32


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

    source: as for `load`. destination: the file; its parents are made. type: one of MIXTURES, such as "q4_k_m"; a
    mixture gives some matrices more bits than others, as llama.cpp's of that name. calibrate: a text file (UTF-8); what
    the model computes from it says how much each column of a matrix matters, and errors there count accordingly.
    imatrix: a file of llama.cpp's that says so, instead.
    allow_requantize: also take weights that are quantized already, whose errors then add up. threads: by default the
    physical cores that this process may use. overwrite: replace a destination that is a GGUF file. progress: called as
    (what, done, in total).

    Vectors stay float32. Memory: a tensor's blocks and 2^24 of its floats. The destination appears when it is complete:
    until then all is in a folder beside it that ends in ".partial", and that is removed if anything fails. Things that
    the user should know are issued as warnings.

    Raises MistralPortableError: InputError for a bad argument, and for weights that are quantized already;
    CheckpointError, which names the tensor, for numbers that are not finite; ConfigError, TokenizerError, BackendError.
    """
    if type not in MIXTURES:
        raise InputError(f"type={type!r}: choose one of {', '.join(MIXTURES)}")
    if calibrate is not None and imatrix is not None:
        raise InputError("calibrate and imatrix both say how much columns matter: give one of them")
    mixture, destination = MIXTURES[type], Path(destination)
    require_free(destination, "gguf", overwrite)
    checkpoint = open_checkpoint(source, revision=revision, progress=progress)
    require_apart(destination, checkpoint)
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
            prepare(open_checkpoint(result), model.config, None)  # what was written loads, whatever the disk did
    finally:
        quantizer.close()
    return destination


@dataclass(frozen=True)
class _Choice:
    """What becomes of a parameter, or of a layer's experts. names: HF's. part: as it would be written unchanged.
    wanted: the type by the mixture; type: what fits the matrix."""

    names: tuple[str, ...]
    part: Part
    wanted: str
    type: str

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Of the names."""
        tensor = self.part.tensor
        return tensor.tensors if isinstance(tensor, StackedTensor) else (tensor,)

    @property
    def kept(self) -> bool:
        """Whether it stays as it is."""
        return {self.part.dtype, *(tensor.dtype for tensor in self.tensors)} == {self.type}

    def part_by(self, quantizer: Quantizer, importance: Importance) -> Part:
        """The part of the file that will be written."""
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
        if len(part.shape) > 1 and not part.name.endswith("ffn_gate_inp.weight"):  # small, and it decides who computes
            wanted = mixture.type_of(part.name, model.config, calibrated)
            fitting = fitting_type(wanted, part.shape[-1])
        plan.append(_Choice(names, part, wanted, fitting))
    return plan


def _names(model: Source) -> list[tuple[str, ...]]:
    """Of the tensors in each part of `plan_gguf`."""
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
    """Notices of types that do not fit."""
    for wanted, type in sorted({(choice.wanted, choice.type) for choice in plan if choice.wanted != choice.type}):
        names = [choice.part.name for choice in plan if (choice.wanted, choice.type) == (wanted, type)]
        yield f"{len(names)} matrices ({names[0]}, ...) have rows that are no whole blocks of {wanted}: {type} instead."


def _require_of_this_model(importance: Importance, plan: list[_Choice], path: str | Path) -> None:
    columns = {name: choice.part.shape[-1] for choice in plan for name in choice.names if len(choice.part.shape) > 1}
    if not importance.keys() & columns.keys():
        raise InputError(f"{path}: holds none of this model's matrices, but {listing([*map(repr, importance)])}")
    for name, counted in importance.items():
        if name in columns and counted.size != columns[name]:
            raise InputError(
                f"{path}: is of another model: it has {counted.size} columns for {name}, which has {columns[name]}"
            )


def _without(importance: Importance, plan: list[_Choice], path: str | Path) -> Iterator[str]:
    """A notice of matrices that are multiplied with and are not in an importance matrix: mostly the output's."""
    lacking = [
        choice.part.name
        for choice in plan
        if not choice.kept and choice.type not in FLOATS and choice.part.name != "token_embd.weight"
        if not importance.keys() & set(choice.names)
    ]
    if lacking:
        yield f"{path} does not have {listing(lacking)}: all of their columns count alike."


def _chunks(tensor: Tensor) -> Iterator[DenseTensor]:
    """Ranges of the rows as floats, whose pages of the file are given back behind them."""
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

"""Step inputs: a StepPlan as arrays, padded so that steps of about the same size share one compiled function."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mistral_portable.boundary.program import Inputs
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.graph import Graph
from mistral_portable_jax.step import NOWHERE, StepInputs

__all__ = ["few", "many", "step_inputs"]


def few(count: int) -> int:
    """Padded number of sequences, each of which reads a whole lane: 1, 2, 4, 8, ..."""
    return 1 << (count - 1).bit_length()


def many(count: int) -> int:
    """Padded number of tokens, in coarser steps, as each size is compiled: 1, 16, 64, 256, 1024, ..."""
    return 1 if count == 1 else max(16, 1 << 2 * -(-(count - 1).bit_length() // 2))


def step_inputs(plan: StepPlan, inputs: Inputs, spec: CacheSpec, graph: Graph, dtype: str) -> StepInputs:
    """Lay out and pad a plan, and the arrays for `graph.given`.

    Example, sequences of 2 and 3 tokens, one requested row: padded to 16 tokens, 2 sequences, the longest of 16, and 2
    rows. On the token axis sequence is 0 0 1 1 1 0 .. and place 0 1 0 1 2 0 ..; packed is 0 1 0 .. | 2 3 4 0 .. .
    Padding is written to no slot.
    """
    lengths = np.diff(plan.query_starts)
    sequences, longest = few(len(lengths)), many(int(lengths.max()))
    tokens = sequences if longest == 1 else many(len(plan.tokens))
    rows = len(plan.logit_rows) and (sequences if len(plan.logit_rows) <= sequences else tokens)
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(sequence)) - plan.query_starts[sequence]
    packed = np.zeros((sequences, longest), np.int32)
    packed[sequence, place] = np.arange(len(sequence))
    positions = _padded(plan.positions, tokens)
    wide = np.float64 if dtype == "float64" else np.float32
    places = {node.inputs[2] for node in graph.nodes if node.op == "replace_rows"}
    sizes, given = {"T": tokens, "R": rows}, {}
    for name, array in inputs.items():
        # Rows of `replace_rows`: none, or as many as tokens, so that there are two sizes and not one for each count.
        size = sizes.get(str(graph.given[name][0]), tokens if len(array) else 0)
        given[name] = _padded(
            array, size, NOWHERE if name in places else 0, wide if array.dtype.kind == "f" else np.int32
        )
    return StepInputs(
        tokens=_padded(plan.tokens, tokens),
        positions=positions,
        logit_rows=_padded(plan.logit_rows, rows),
        given=given,
        angles=tuple(rotation.table(positions, wide) for rotation in graph.rotations),
        sequence=_padded(sequence, tokens),
        place=_padded(place, tokens),
        packed=packed,
        lanes=_padded(plan.lanes, sequences),
        last=_padded(plan.ends - 1, sequences),
        slots=tuple(_padded(reads.slot_mapping, tokens, NOWHERE) for reads in plan.groups),
        rings=tuple(np.int32(group.slots) for group in spec.groups),
    )


def _padded(array: NDArray[Any], size: int, value: int = 0, dtype: DTypeLike = np.int32) -> Any:
    ends = [(0, size - len(array)), *[(0, 0)] * (array.ndim - 1)]
    return np.pad(array.astype(dtype), ends, constant_values=value)

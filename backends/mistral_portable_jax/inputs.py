"""Step inputs: a StepPlan as arrays, padded so that steps of about the same size share one compiled function."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mistral_portable.boundary.program import Inputs
from mistral_portable.cache import CacheSpec, LayerGroup, StepPlan
from mistral_portable.graph import Graph
from mistral_portable_jax.step import NOWHERE, StepInputs

__all__ = ["few", "many", "padded", "step_inputs"]


def few(count: int) -> int:
    """Padded number of things that cost much, sequences and pages: 0, 1, 2, 4, 8, ..."""
    return 1 << (count - 1).bit_length() if count else 0


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
    positions = padded(plan.positions, tokens)
    wide = np.float64 if dtype == "float64" else np.float32
    places = {node.inputs[2] for node in graph.nodes if node.op == "replace_rows"}
    sizes, given = {"T": tokens, "R": rows}, {}
    for name, array in inputs.items():
        # Rows of `replace_rows`: none, or as many as tokens, so that there are two sizes and not one for each count.
        size = sizes.get(str(graph.given[name][0]), tokens if len(array) else 0)
        given[name] = padded(
            array, size, NOWHERE if name in places else 0, wide if array.dtype.kind == "f" else np.int32
        )
    return StepInputs(
        tokens=padded(plan.tokens, tokens),
        positions=positions,
        logit_rows=padded(plan.logit_rows, rows),
        given=given,
        angles=tuple(rotation.table(positions, wide) for rotation in graph.rotations),
        sequence=padded(sequence, tokens),
        place=padded(place, tokens),
        packed=packed,
        last=padded(plan.ends - 1, sequences),
        slots=tuple(padded(reads.slot_mapping, tokens, NOWHERE) for reads in plan.groups),
        pages=tuple(
            _table(reads.pages, sequences, _width(reads.pages.shape[1], longest, group, spec.max_context))
            for group, reads in zip(spec.groups, plan.groups, strict=True)
        ),
        first=tuple(padded(reads.first, sequences) for reads in plan.groups),
    )


def padded(array: NDArray[Any], size: int, value: int = 0, dtype: DTypeLike = np.int32) -> NDArray[Any]:
    """The array with `size` rows, those at the end `value`, in `dtype`."""
    ends = [(0, size - len(array)), *[(0, 0)] * (array.ndim - 1)]
    return np.pad(array.astype(dtype), ends, constant_values=value)


def _table(pages: NDArray[np.int32], sequences: int, width: int) -> NDArray[np.int32]:
    """Pad pages [S, P] to [sequences, width]; page 0 stands in places that are not read."""
    table = np.zeros((sequences, width), np.int32)
    table[: pages.shape[0], : pages.shape[1]] = pages
    return table


def _width(pages: int, longest: int, group: LayerGroup, max_context: int) -> int:
    """Padded number of pages that a sequence of `longest` tokens, a padded number, reads: 2, 4, 8, ... up to all.

    At least 2, as a window lies now in one page, now in two. Example: window 4096, pages of 32 slots, one token: 4096
    positions lie in at most 129 pages, so 128 pages are padded to 128, and 129 to 129.
    """
    positions = max_context if group.window is None else min(max_context, group.window - 1 + longest)
    most = min(-(-max_context // group.page_size), 1 + -(-(positions - 1) // group.page_size))
    return min(most, max(2, few(pages)))

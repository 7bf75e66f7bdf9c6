"""The kernel for products of few tokens with a float matrix: torch's or ours, whichever is faster on this GPU.

Both are timed when a program is made, once in a process for each shape and number of matrices: so
all programs of a model compute alike.
"""

import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from mistral_portable_torch.attempt import Attempt, why_not_compiled
from mistral_portable_torch.capture import Outputs, Record
from mistral_portable_torch.matrices import Dense
from mistral_portable_torch.processes import Group

__all__ = ["DTYPES", "MAX_TOKENS", "choose", "seconds"]

MAX_TOKENS = 4
DTYPES = (torch.float16, torch.bfloat16)

_GAIN = 1.05  # times that differ by less are noise: the next process may find them the other way round
_REPEATS = 5
_LOG = logging.getLogger("mistral_portable.torch")
_COMPILED = Attempt("products of 1 to 4 tokens are torch's, also where ours are faster")
_CHOSEN: dict[tuple[object, ...], frozenset[int]] = {}

Clock = Callable[[Callable[[], object]], float]
"""Runs a function, and returns the seconds that it took on the GPU."""


def gpu_seconds(run: Callable[[], object]) -> float:
    """The time between two events on torch's current GPU."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def choose(matrices: Iterable[Dense], record: Record | None, group: Group | None, clock: Clock = gpu_seconds) -> None:
    """Have the matrices of a program multiply 1 to MAX_TOKENS tokens by the kernel that is faster for their shape; the
    log says which. Those that are not of DTYPES are left to torch.

    record: records steps, if they are recorded. group: the processes that share the model, which all choose our kernel
    where each has found it faster.
    """
    alike: dict[torch.Size, list[Dense]] = defaultdict(list)
    for matrix in matrices:
        if matrix.weight.dtype in DTYPES:
            alike[matrix.weight.shape].append(matrix)
    for shape, some in alike.items():
        weights = [matrix.weight for matrix in some]
        device, dtype = weights[0].device, weights[0].dtype
        key = device, dtype, shape, len(weights), record is None
        if key not in _CHOSEN:
            found = _COMPILED.run(device, partial(_measured, weights, record, clock), frozenset[int])
            _CHOSEN.setdefault(key, found)
        ours = _CHOSEN[key]
        if group is not None:
            ours = frozenset(count for count in range(1, MAX_TOKENS + 1) if group.least(int(count in ours)))
        for matrix in some:
            matrix.ours = ours


def seconds(
    weights: Sequence[Tensor], tokens: int, record: Record | None, clock: Clock = gpu_seconds
) -> Mapping[str, float]:
    """The time of a product with one of the matrices [O, I], by our kernel ("ours") and by torch's ("torch").

    All are multiplied one after another, as in a step, so that they come from memory: together they should be larger
    than the GPU's cache. Each kernel is compiled, then recorded, if there is a `record`, and then timed. Raises what
    they raise.
    """
    from mistral_portable_torch import float_gemv

    x = torch.ones(tokens, weights[0].shape[1], dtype=weights[0].dtype, device=weights[0].device)
    found = {}
    for name, multiply in (("ours", float_gemv.multiply), ("torch", linear)):
        step = partial(_multiply, weights, multiply, x)
        step()  # what compiles or initializes itself cannot be recorded
        run = step if record is None else record(step)[1]
        found[name] = min(clock(run) for _ in range(_REPEATS)) / len(weights)
    return found


def _multiply(weights: Sequence[Tensor], multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Outputs:
    for weight in weights:
        multiply(x, weight)
    return {}


def _measured(weights: Sequence[Tensor], record: Record | None, clock: Clock) -> frozenset[int]:
    """The result of `_faster`; none, with a warning, if it fails: a model can do without. Compilers' errors are
    raised."""
    try:
        return _faster(weights, record, clock)
    except Exception as error:  # no memory, or no recording
        if why_not_compiled(error) is not None:
            raise
        first = (str(error) or type(error).__name__).splitlines()[0]
        warnings.warn(f"products of 1 to 4 tokens are torch's, as no others could be timed ({first})", stacklevel=3)
        return frozenset()


def _faster(weights: Sequence[Tensor], record: Record | None, clock: Clock) -> frozenset[int]:
    """The numbers of tokens that our kernel multiplies faster."""
    ours, told = set[int](), list[str]()
    for count in range(1, MAX_TOKENS + 1):
        taken = seconds(weights, count, record, clock)
        if taken["ours"] * _GAIN < taken["torch"]:
            ours.add(count)
        chosen = "ours" if count in ours else "torch's"
        told.append(f"{count}: {chosen} ({taken['ours'] * 1e6:.1f} us, torch's {taken['torch'] * 1e6:.1f})")
    rows, columns = weights[0].shape
    _LOG.info("kernels for %d x %d matrices, by tokens: %s", rows, columns, "; ".join(told))
    return frozenset(ours)

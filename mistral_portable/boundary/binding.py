"""Whether the tensors of a checkpoint are the parameters of a graph."""

import re
from collections.abc import Mapping, Sequence

from mistral_portable.errors import CheckpointError
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor

__all__ = ["check_tensors"]

_NUMBERED = [re.compile(rf"(.*\.{name}\.)(\d+)(\..*)") for name in ("experts", "layers")]


def check_tensors(graph: Graph, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise one CheckpointError that names every tensor which does not fit an unfused graph.

    Missing or mis-shaped parameters do not fit, nor do biases of linears that have none in the graph: to ignore
    them would change the answers. Other tensors (heads, rotary buffers) may be there. `source` is the path. What
    is wrong alike in several layers or experts is said once: `model.layers.{0-3,7}.mlp.up_proj.weight is missing`.
    """
    problems = []
    for name, shape in graph.tensors.items():
        if name not in tensors:
            problems.append(f"{name} is missing")
        elif tensors[name].shape != shape:
            problems.append(f"{name} has the shape {tensors[name].shape} and needs {shape}")
        bias = f"{name.removesuffix('.weight')}.bias"
        if bias in tensors and bias not in graph.parameters:
            problems.append(f"{bias} is a bias, which this model has not")
    if problems:
        for pattern in _NUMBERED:
            problems = _together(problems, pattern)
        raise CheckpointError(f"{source}: the tensors do not fit the config: {'; '.join(problems)}")


def _together(problems: Sequence[str], pattern: re.Pattern[str]) -> list[str]:
    """Join problems that differ in a number only: layers 0 and 1 of one tensor become {0-1}."""
    alike: dict[tuple[str, str], list[int]] = {}
    for problem in problems:
        if match := pattern.fullmatch(problem):
            alike.setdefault((match[1], match[3]), []).append(int(match[2]))
        else:
            alike[problem, ""] = []
    return [f"{before}{_ranges(some)}{after}" for (before, after), some in alike.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers: [] -> "", [4] -> "4", [0, 1, 2, 5] -> "{0-2,5}"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [f"{first}-{last}" if first < last else f"{first}" for first, last in runs]
    return f"{{{','.join(texts)}}}" if len(numbers) > 1 else ",".join(texts)

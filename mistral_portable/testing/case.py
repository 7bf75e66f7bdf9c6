"""Case: a graph with weights and a scenario, and the check that runs it on a backend against the oracle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mistral_portable.boundary import Backend, ExecutorOptions, Precision, prepare
from mistral_portable.cache import CacheSpec
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BackendError
from mistral_portable.graph import Graph, infer_shapes
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.testing.naive import NaiveProgram
from mistral_portable.testing.scenario import Outputs, Scenario, WrongOutput, one_shot, run
from mistral_portable.testing.tolerance import compare
from mistral_portable.weights import Tensor

__all__ = ["Case", "CheckResult", "Oracles", "check"]

# Naive runs for outputs of so many numbers: a small one has few independent errors, and few runs would miss what an
# honest program makes.
_NAIVE_RUNS = {4096: 3, 128: 8, 32: 16, 0: 32}


@dataclass(frozen=True, repr=False)
class Case:
    """`config` gives the sizes of the cache; `graph` may be any graph over it."""

    name: str
    config: MistralConfig
    graph: Graph
    weights: Mapping[str, Tensor]
    scenario: Scenario

    def __repr__(self) -> str:
        """Without the graph and the weights, which would bury the rest."""
        return f"Case({self.name!r}, {self.config}, {self.scenario})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # hypothesis prints failing cases through this
        printer.text(repr(self))


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a Case on a backend.

    status: "pass", "fail" or "unsupported". nmse: the worst of the outputs. error and limit: max |out - ref| of
    the output that comes closest to its limit, and that limit. agreement: share of rows whose largest entry is
    the oracle's. note: what is wrong, or why it is unsupported.
    """

    name: str
    status: str
    nmse: float
    error: float
    limit: float
    agreement: float
    note: str

    @property
    def of_model(self) -> bool:
        """Whether it is about a whole model, not about one op on random inputs."""
        return not self.name.startswith("op ")


Oracles = dict[tuple[int, Scenario, Precision], list[Outputs]]


def check(case: Case, backend: Backend, options: ExecutorOptions, oracles: Oracles | None = None) -> CheckResult:
    """Run the case on `backend` as its scenario says, and judge every output of every sequence.

    The oracle sees each sequence alone and in one step, in float64: so a pass also means that chunked = one-shot,
    ragged = alone, and that a rollback or a swap leaves no trace. `oracles`, an empty dict at first, keeps the
    oracle's outputs for further cases with the same graph object and texts.
    """
    oracles = {} if oracles is None else oracles
    scenario = case.scenario
    spec = _spec(case, scenario)
    try:
        program = prepare(backend, case.graph, case.weights, spec, options)
    except BackendError as error:
        return CheckResult(case.name, "unsupported", np.nan, np.nan, np.nan, np.nan, str(error))
    try:
        outputs = run(program, case.graph, spec, scenario)
        precision = program.precision
    except Exception as error:  # a backend's own defects are a result of the check, not its end
        note = str(error) if isinstance(error, WrongOutput) else f"{type(error).__name__}: {error}"
        return CheckResult(case.name, "fail", np.inf, np.inf, 0.0, np.nan, note)
    finally:
        program.close()
    comparisons, agreements = [], []
    shapes = infer_shapes(case.graph)
    for sequence, text in scenario.texts.items():
        alone = one_shot(text, embeds=scenario.embeds)
        key = id(case.graph), alone, precision
        runs = oracles[key] = oracles.get(key) or _oracle(case, alone, precision)
        for name, out in outputs[sequence].items():
            on_rows = shapes[case.graph.outputs[name]][0] == "R"
            ref, *naive = (run[name][scenario.asked(sequence)] if on_rows else run[name] for run in runs)
            comparisons.append(compare(out, ref, naive, precision.dtype))
            if out.size and out.shape == ref.shape:
                agreements.append(np.mean(out.argmax(-1) == ref.argmax(-1)))
    worst = max(comparisons, key=lambda c: c.error / c.limit if c.limit else np.inf if c.error else 0)
    return CheckResult(
        case.name,
        "fail" if worst.problem else "pass",
        max(comparison.nmse for comparison in comparisons),
        worst.error,
        worst.limit,
        float(np.mean(agreements)) if agreements else np.nan,
        worst.problem,
    )


def _spec(case: Case, scenario: Scenario) -> CacheSpec:
    return CacheSpec.from_config(
        case.config,
        max_context=scenario.max_context,
        max_chunk=scenario.max_chunk,
        max_lanes=scenario.max_lanes,
    )


def _oracle(case: Case, scenario: Scenario, precision: Precision) -> list[Outputs]:
    """Outputs of one text in one step: the float64 reference, then the naive runs in `precision`."""
    spec = _spec(case, scenario)
    ref = run(ReferenceProgram(case.graph, case.weights, spec, "float64"), case.graph, spec, scenario)[0]
    size = min(out.size for out in ref.values())
    runs = next(runs for least, runs in _NAIVE_RUNS.items() if size >= least)
    naive = [NaiveProgram(case.graph, case.weights, spec, precision, seed) for seed in range(runs)]
    return [ref, *(run(program, case.graph, spec, scenario)[0] for program in naive)]

"""Case: a graph with weights and a scenario, and the check that runs it on a backend against the oracle."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mistral_portable.boundary import Backend, ExecutorOptions, Precision, Program, prepare
from mistral_portable.cache import CacheSpec
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BackendError
from mistral_portable.graph import Graph, infer_shapes
from mistral_portable.reference import BACKEND
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.testing.invariance import difference, run_alone
from mistral_portable.testing.naive import NaiveProgram
from mistral_portable.testing.scenario import Outputs, Scenario, Stuck, WrongOutput, one_shot, run
from mistral_portable.testing.tolerance import judge, row_errors
from mistral_portable.weights import Tensor

__all__ = ["Case", "CheckResult", "Drive", "Oracles", "cache_spec", "check"]

# Naive runs for outputs of at least so many numbers: a small output has few independent errors, so few runs would miss
# some that an honest program makes.
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
        """The name, the config and the scenario: the graph and the weights are too long to print."""
        return f"Case({self.name!r}, {self.config}, {self.scenario})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # hypothesis prints failing cases through this
        printer.text(repr(self))


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a Case on a backend.

    status: "pass", "fail" or "unsupported". nmse: the worst of the outputs. error and limit: max |out - ref| of
    the output that comes closest to its limit, and that limit. agreement: share of rows whose argmax is the oracle's.
    note: the fault, or the reason why it is unsupported. batch_invariant: whether the program said that it is.
    """

    name: str
    status: str
    nmse: float
    error: float
    limit: float
    agreement: float
    note: str
    batch_invariant: bool = False

    @property
    def of_model(self) -> bool:
        """Whether it checked a whole model, not one op on random inputs."""
        return not self.name.startswith("op ")


Drive = Callable[[Program, Graph, CacheSpec, Scenario], dict[int, Outputs]]
"""Takes a program through a scenario and gives each sequence's outputs: `scenario.run`, or one of `contract.py`."""


@dataclass(frozen=True)
class Oracles:
    """The oracle's outputs, kept for further checks of the same text on the same graph object (which must stay alive).

    refs: float64 outputs, for all precisions. errors: for each output [T, ...] the naive runs' largest error in each
    row, [T].
    """

    refs: dict[tuple[int, Scenario], Outputs] = field(default_factory=dict)
    errors: dict[tuple[int, Scenario, Precision], Outputs] = field(default_factory=dict)

    def find(self, case: Case, text: Scenario, precision: Precision) -> tuple[Outputs, Outputs]:
        """The float64 outputs of a text, run alone and in one step, and the errors of naive runs in `precision`."""
        key = id(case.graph), text
        if key not in self.refs:
            self.refs[key] = _reference(case, text)
        if (*key, precision) not in self.errors:
            self.errors[*key, precision] = _naive_errors(case, text, precision, self.refs[key])
        return self.refs[key], self.errors[*key, precision]


def check(
    case: Case, backend: Backend, options: ExecutorOptions, oracles: Oracles | None = None, drive: Drive = run
) -> CheckResult:
    """Run the case on `backend` as its scenario and `drive` say, and judge every output of every sequence.

    The oracle runs each sequence alone and in one step, in float64: so a pass also means that chunked = one-shot,
    ragged = alone, and that a rollback, a fork or a swap leaves no trace. Where a program says `batch_invariant`,
    another one runs each sequence alone, token by token and on one thread, and must give the same bits. `oracles` keeps
    the oracle's outputs for further checks; None: they are computed for this one.
    """
    oracles = oracles or Oracles()
    scenario = case.scenario
    spec = cache_spec(case, scenario, backend)
    try:
        program = prepare(backend, case.graph, case.weights, spec, options)
    except BackendError as error:
        return CheckResult(case.name, "unsupported", np.nan, np.nan, np.nan, np.nan, str(error))
    try:
        outputs = drive(program, case.graph, spec, scenario)
        precision = program.precision
        program.close()
        alone = _alone(case, backend, options, spec) if program.batch_invariant else {}
    except Exception as error:  # a backend's own defects are a result of the check, not its end
        if not isinstance(error, Stuck):  # to close a program that hangs would hang, too
            with suppress(Exception):
                program.close()
        note = str(error) if isinstance(error, WrongOutput) else f"{type(error).__name__}: {error}"
        return CheckResult(case.name, "fail", np.inf, np.inf, 0.0, np.nan, note)
    comparisons, agreements = [], []
    shapes = infer_shapes(case.graph)
    for sequence, text in scenario.texts.items():
        refs, errors = oracles.find(case, one_shot(text, embeds=scenario.embeds), precision)
        for name, out in outputs[sequence].items():
            rows = scenario.requested(sequence) if shapes[case.graph.outputs[name]][0] == "R" else slice(None)
            ref = refs[name][rows]
            comparisons.append(judge(out, ref, errors[name][rows], precision.dtype))
            if out.size and out.shape == ref.shape:
                agreements.append(np.mean(out.argmax(-1) == ref.argmax(-1)))
    worst = max(comparisons, key=lambda c: c.error / c.limit if c.limit else np.inf if c.error else 0)
    problem = worst.problem or difference(case.graph, outputs, alone)
    return CheckResult(
        case.name,
        "fail" if problem else "pass",
        max(comparison.nmse for comparison in comparisons),
        worst.error,
        worst.limit,
        float(np.mean(agreements)) if agreements else np.nan,
        problem,
        program.batch_invariant,
    )


def _alone(case: Case, backend: Backend, options: ExecutorOptions, spec: CacheSpec) -> dict[int, Outputs]:
    """The outputs of each sequence alone and token by token; on one thread, where the backend has that option."""
    if "threads" in backend.capabilities.options:
        options = replace(options, threads=1)
    program = prepare(backend, case.graph, case.weights, spec, options)
    try:
        return run_alone(program, case.graph, spec, case.scenario)
    finally:
        program.close()


def cache_spec(case: Case, scenario: Scenario, backend: Backend) -> CacheSpec:
    """The sizes of the cache that a scenario of the case needs on a backend."""
    return CacheSpec.from_config(
        case.config,
        max_context=scenario.max_context,
        page_size=backend.capabilities.page_size,
        max_chunk=scenario.max_chunk,
        max_lanes=scenario.max_lanes,
    )


def _reference(case: Case, text: Scenario) -> Outputs:
    spec = cache_spec(case, text, BACKEND)
    return run(ReferenceProgram(case.graph, case.weights, spec, "float64"), case.graph, spec, text)[0]


def _naive_errors(case: Case, text: Scenario, precision: Precision, refs: Outputs) -> Outputs:
    """The largest errors of the naive runs in each row.

    The runs are lanes of one step, all with the same text: noise is drawn along the whole token axis, so each lane has
    its own.
    """
    size = min(out.size for out in refs.values())
    runs = next(runs for least, runs in _NAIVE_RUNS.items() if size >= least)
    lanes = one_shot(text.texts[0], sequences=runs, embeds=text.embeds)
    spec = cache_spec(case, lanes, BACKEND)
    program = NaiveProgram(case.graph, case.weights, spec, precision, seed=0)
    naive = run(program, case.graph, spec, lanes)
    return {
        name: np.max([row_errors(outputs[name], ref) for outputs in naive.values()], axis=0)
        for name, ref in refs.items()
    }

"""The loads that `tools/bench_serving.py` plays, and the figures that it takes from each. Not a command."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np

from mistral_portable.bench import Measurement, parse
from tools.bench_loads import Load, Mix, callers, chat, intruder, poisson, sharers
from tools.bench_play import Trace

__all__ = ["Figures", "Scenario", "duration", "gaps_of_others", "last_turn", "latencies", "scenarios", "sharing"]

Figures = Mapping[str, tuple[float, str]]
"""A value and its unit, by name."""


@dataclass(frozen=True)
class Scenario:
    """A load and its figures.

    make: `make(vocab=..., seed=...)`, the load. figures: from its traces. alone: steps that are to be measured without
    requests, and the figure in seconds that is divided by theirs.
    """

    make: Callable[..., Load]
    figures: Callable[[Sequence[Trace]], Figures]
    alone: tuple[Measurement, str] | None = None


def scenarios(mix: Mix) -> dict[str, Scenario]:
    """All scenarios by name; docs/benchmarks.md tells what each is for."""
    turn = partial(chat, 4000, 16, 30)
    read = parse("prefill:30@4016", 1), "first token"
    return {
        "mix": Scenario(partial(poisson, mix), latencies),
        "stream": Scenario(partial(callers, 1, 64), duration),
        "callers": Scenario(partial(callers, 8, 64), duration, (parse("batch:8", 64), "duration")),
        "turn": Scenario(partial(turn, False), last_turn, read),
        "turn-between": Scenario(partial(turn, True), last_turn, read),
        "sharers": Scenario(partial(sharers, 8, 2000, 50, 8), sharing),
        "system": Scenario(partial(sharers, 8, 1000, 50, 64), latencies),
        "intruder": Scenario(partial(intruder, 4, 32, 8000, 4), gaps_of_others),
    }


def latencies(traces: Sequence[Trace]) -> Figures:
    """Times to the first token and between tokens, tokens of all answers per second, and the cached share."""
    first = [_first_token(trace) for trace in traces]
    between = 1e3 * np.concatenate([np.diff(trace.times) for trace in traces])
    figures = {f"first token, p{p}": (float(np.percentile(first, p)), "s") for p in (50, 95)}
    figures |= {f"between tokens, p{p}": (float(np.percentile(between, p)), "ms") for p in (50, 95)}
    figures["all answers"] = duration(traces)["all answers"]
    figures["cached share of prompts"] = (100 * _cached(traces) / _prompts(traces), "%")
    return figures


def duration(traces: Sequence[Trace]) -> Figures:
    """Tokens of all answers per second, and the seconds from the first request to the last token."""
    seconds = max(trace.times[-1] for trace in traces) - min(trace.due for trace in traces)
    tokens = sum(len(trace.times) for trace in traces)
    return {"all answers": (tokens / seconds, "tokens/s"), "duration": (seconds, "s")}


def last_turn(traces: Sequence[Trace]) -> Figures:
    """Time to the first token of the last request, and how many tokens of its prompt were computed."""
    return {"first token": (_first_token(traces[-1]), "s"), "prompt tokens computed": _computed(traces[-1:])}


def sharing(traces: Sequence[Trace]) -> Figures:
    """Longest time to a first token, and how many tokens of all prompts were computed."""
    return {"slowest first token": (max(map(_first_token, traces)), "s"), "prompt tokens computed": _computed(traces)}


def gaps_of_others(traces: Sequence[Trace]) -> Figures:
    """Times between tokens of all requests but the last: the median before that one began, p95 until its first token.

    A gap that reaches over the begin or over the first token belongs to the time between.
    """
    *others, last = traces
    gaps = [gap for trace in others for gap in zip(trace.times, trace.times[1:], strict=False)]
    before = [1e3 * (end - start) for start, end in gaps if end <= last.due]
    meanwhile = [1e3 * (end - start) for start, end in gaps if end > last.due and start < last.times[0]]
    usual, slow = median(before), float(np.percentile(meanwhile, 95))
    return {
        "between tokens before, p50": (usual, "ms"),
        "between tokens meanwhile, p95": (slow, "ms"),
        "slower meanwhile": (slow / usual, "times"),
        "first token of the long prompt": (_first_token(last), "s"),
    }


def _first_token(trace: Trace) -> float:
    return trace.times[0] - trace.due


def _computed(traces: Sequence[Trace]) -> tuple[int, str]:
    return _prompts(traces) - _cached(traces), "tokens"


def _prompts(traces: Sequence[Trace]) -> int:
    return sum(trace.prompt for trace in traces)


def _cached(traces: Sequence[Trace]) -> int:
    return sum(trace.cached for trace in traces)

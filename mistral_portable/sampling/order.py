"""The order of the rules: those that change the logits of all tokens, and those that choose among them behind."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from mistral_portable.sampling import processors
from mistral_portable.sampling.entropy import dynamic_temperature, mirostat
from mistral_portable.sampling.memory import Change, Memory
from mistral_portable.sampling.params import SamplingParams
from mistral_portable.sampling.processors import Positions, Row
from mistral_portable.sampling.scratch import scratch

__all__ = ["Step", "split_order", "steps"]

Step = Callable[[Positions | None, Row], tuple[Positions | None, Row]]
"""Takes the tokens that are left, ids [n] in rising order or None for all, and their logits [n]; returns fewer of them,
or other logits. The memory of the logits may be used again."""

_CHANGES = ("penalties", "dry")


def split_order(params: SamplingParams) -> tuple[Sequence[str], Sequence[str]]:
    """Split `params.samplers`: penalties and DRY with which the order begins, and the rules behind them.

    Greedy choices and mirostat know penalties and DRY alone, so all of these come first there.
    """
    order = params.samplers
    if params.temperature == 0 or params.mirostat:
        return [name for name in order if name in _CHANGES], ["temperature", "mirostat"]
    first = next((place for place, name in enumerate(order) if name not in _CHANGES), len(order))
    return order[:first], order[first:]


def steps(params: SamplingParams, names: Sequence[str], memory: Memory, vocab_size: Callable[[], int]) -> list[Step]:
    """Make the steps of the rules `names`, one after the other, without those that are off; all that is left is finite.

    vocab_size: tells it when the steps are taken.
    """
    made, finite = list[Step](), False
    filters = _filters(params, memory)
    for before, name in pairwise(["", *names]):
        if name == "temperature":
            made += _temperature(params, with_top_k=(name, "top_k") in pairwise(names))
            finite = False
        elif name in memory.changes:
            made.append(_of_all(memory.changes[name], vocab_size))
            finite = False
        elif name in filters and not (name == "top_k" and before == "temperature" and not params.dynatemp_range):
            made += [] if finite else [_kept(processors.finite)]
            made.append(_kept(filters[name]))
            finite = True
    return made if finite else [*made, _kept(processors.finite)]


def _filters(p: SamplingParams, memory: Memory) -> dict[str, Callable[[Row], Positions | None]]:
    """Make the rules that choose, without those that are off."""
    made: dict[str, Callable[[Row], Positions | None]] = {}
    if p.top_n_sigma > 0:
        made["top_n_sigma"] = lambda logits: processors.top_n_sigma(logits, p.top_n_sigma)
    if p.top_k:
        made["top_k"] = lambda logits: processors.top_k(logits, p.top_k)
    if p.top_p < 1:
        made["top_p"] = lambda logits: processors.top_p(logits, p.top_p)
    if p.min_p:
        made["min_p"] = lambda logits: processors.min_p(logits, p.min_p)
    if p.typical_p < 1:
        made["typical_p"] = lambda logits: processors.typical_p(logits, p.typical_p)
    if p.epsilon_cutoff:
        made["epsilon_cutoff"] = lambda logits: processors.epsilon_cutoff(logits, p.epsilon_cutoff)
    if p.eta_cutoff:
        made["eta_cutoff"] = lambda logits: processors.eta_cutoff(logits, p.eta_cutoff)
    if p.xtc_probability:
        made["xtc"] = lambda logits: (
            processors.xtc(logits, p.xtc_threshold) if memory.chance < p.xtc_probability else None
        )
    if p.mirostat:
        made["mirostat"] = lambda logits: mirostat(logits, memory.mu)
    return made


def _temperature(p: SamplingParams, *, with_top_k: bool) -> list[Step]:
    """Make the step of the temperature. with_top_k: whether top_k follows, which is faster in the same step."""
    if p.dynatemp_range:
        return [_dynamic_temperature(p)]
    k = p.top_k if with_top_k else 0
    if p.temperature == 1 and not k:
        return []

    def step(tokens: Positions | None, logits: Row) -> tuple[Positions | None, Row]:
        kept, scaled = processors.temperature_top_k(logits, p.temperature, k, scratch(logits.size, np.float32))
        return _of(tokens, kept), scaled

    return [step]


def _dynamic_temperature(p: SamplingParams) -> Step:
    def step(tokens: Positions | None, logits: Row) -> tuple[Positions | None, Row]:
        finite = processors.finite(logits)
        value = dynamic_temperature(
            logits if finite is None else logits[finite], p.temperature, p.dynatemp_range, p.dynatemp_exponent
        )
        return tokens, processors.temperature(logits, value, scratch(logits.size, np.float32))

    return step


def _kept(keep: Callable[[Row], Positions | None]) -> Step:
    def step(tokens: Positions | None, logits: Row) -> tuple[Positions | None, Row]:
        kept = keep(logits)
        return (tokens, logits) if kept is None else (_of(tokens, kept), logits[kept])

    return step


def _of_all(change: Change, vocab_size: Callable[[], int]) -> Step:
    """Make a step of a rule for whole rows, in which the tokens that are not left are banned."""

    def step(tokens: Positions | None, logits: Row) -> tuple[Positions | None, Row]:
        row = np.full(vocab_size(), -np.inf, np.float32)
        left = slice(None) if tokens is None else tokens
        row[left] = logits
        change(row)
        return tokens, row[left]

    return step


def _of(tokens: Positions | None, kept: Positions | None) -> Positions | None:
    """The ids at the positions that are kept; None stands for all."""
    if tokens is None or kept is None:
        return kept if tokens is None else tokens
    return tokens[kept]

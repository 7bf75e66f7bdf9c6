"""The conformance ladder: the rungs, and for each a corpus of cases that is drawn once. Needs the [test] extra."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from mistral_portable.testing.case import Case, Drive, Oracles
from mistral_portable.testing.contract import run_guarded, run_in_threads, run_then_close
from mistral_portable.testing.op_cases import OP_CASES
from mistral_portable.testing.strategies import adapter_cases, model_cases, op_cases, page_cases
from mistral_portable.weights.quantize_on_read import QUANTIZABLE

__all__ = ["CORPUS_SIZE", "DRIVES", "RUNGS", "SIZES", "Corpus", "corpus"]

CORPUS_SIZE = 50
"""Cases of a rung, unless SIZES says otherwise."""

SIZES: Mapping[str, int] = {"pages": 16, "adapters.q4_0": 16}
"""Cases of rungs whose texts are long, or that join two others."""

RUNGS: Mapping[str, st.SearchStrategy[Case]] = {
    **{f"op.{name}": op_cases(name) for name in OP_CASES},
    "one_shot": model_cases(chunks=(64,)),
    "chunked": model_cases(),
    "token_by_token": model_cases(chunks=(1,)),
    "ragged": model_cases(sequences=3),
    "rollback": model_cases(sequences=2, rollback=True),
    "rows": model_cases(sequences=2, rows=True),
    "swapped": model_cases(sequences=3, swap=True),
    "pages": page_cases(),
    "inputs_embeds": model_cases(sequences=2, embeds=True),
    "adapters": adapter_cases(),
    "adapters.q4_0": adapter_cases(quantization="q4_0"),
    "closed": model_cases(sequences=2),
    "threads": model_cases(sequences=3, rollback=True),
    "own_outputs": model_cases(chunks=(1, 3), embeds=True),
    **{f"weights.{name}": model_cases(quantization=name) for name in QUANTIZABLE},
}
"""The ladder: name -> cases."""

DRIVES: Mapping[str, Drive] = {"closed": run_then_close, "threads": run_in_threads, "own_outputs": run_guarded}
"""How the cases of a rung are run, where that is not `scenario.run`."""


@dataclass(frozen=True)
class Corpus:
    """Cases of a rung, always the same, and the oracle's outputs for them, which all targets of a process share."""

    cases: Sequence[Case]
    oracles: Oracles = field(default_factory=Oracles)


@cache
def corpus(rung: str) -> Corpus:
    """The corpus of a rung: SIZES or CORPUS_SIZE draws from a fixed seed (fewer if it has fewer different cases)."""
    cases: list[Case] = []

    @seed(0)
    @settings(
        max_examples=SIZES.get(rung, CORPUS_SIZE),
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(RUNGS[rung])
    def draw(case: Case) -> None:
        cases.append(case)

    draw()
    return Corpus(tuple(cases))

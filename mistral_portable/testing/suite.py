"""The conformance ladder as pytest tests. Needs the [test] extra.

A backend's test file is four lines:

    import pytest
    from mistral_portable.testing.suite import Target, test_conformance

    @pytest.fixture(scope="module", params=["float32"])
    def target(request): return Target(BACKEND, ExecutorOptions(dtype=request.param), Path("xfails/mine.txt"))

Each rung draws its cases and checks them as `check` says. A gap that is known stands in the xfail file, one
`RUNG  reason` a line; it must then fail or be unsupported (a gap that is closed is an error: take the line out).
`test_greedy` is for backends whose programs are GreedyPrograms.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mistral_portable.boundary import Backend, ExecutorOptions
from mistral_portable.testing.case import Case, check
from mistral_portable.testing.greedy import greedy_tokens
from mistral_portable.testing.op_cases import OP_CASES
from mistral_portable.testing.strategies import model_cases, op_cases
from mistral_portable.weights.quantize_on_read import QUANTIZABLE

__all__ = ["RUNGS", "Target", "test_conformance", "test_greedy"]


def _patient(**more: Any) -> settings:
    """Settings for whoever may have a slow machine; the rest is the profile's that is loaded now."""
    return settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], **more)


RUNGS: dict[str, st.SearchStrategy[Case]] = {
    **{f"op.{name}": op_cases(name) for name in OP_CASES},
    "one_shot": model_cases(chunks=(64,)),
    "chunked": model_cases(),
    "token_by_token": model_cases(chunks=(1,)),
    "ragged": model_cases(sequences=3),
    "rollback": model_cases(sequences=2, rollback=True),
    "rows": model_cases(sequences=2, rows=True),
    "swapped": model_cases(sequences=3, swap=True),
    "inputs_embeds": model_cases(sequences=2, embeds=True),
    **{f"weights.{name}": model_cases(quantization=name) for name in QUANTIZABLE},
}
"""The ladder: name -> cases."""


@dataclass(frozen=True)
class Target:
    """What the suite runs on: a backend with options, and its file of known gaps."""

    backend: Backend
    options: ExecutorOptions
    xfails: Path | None = None

    def known_gap(self, rung: str) -> str | None:
        """The reason that the xfail file gives for this rung, if it does."""
        if self.xfails is None or not self.xfails.exists():
            return None
        for line in self.xfails.read_text().splitlines():
            name, _, reason = line.partition(" ")
            if name == rung:
                assert reason.strip(), f"{self.xfails}: {rung} has no reason"
                return reason.strip()
        return None


@pytest.mark.parametrize("rung", RUNGS)
def test_conformance(rung: str, target: Target) -> None:
    """Every drawn case of the rung passes on the target."""

    reason = target.known_gap(rung)

    # A gap is proved by one case, which need not be the smallest.
    @_patient(phases=list(Phase) if reason is None else [Phase.generate])
    @given(RUNGS[rung])
    def climb(case: Case) -> None:
        result = check(case, target.backend, target.options)
        assert result.status == "pass", f"{target.backend.name}: {result}"

    if reason is None:
        climb()
    else:
        with pytest.raises(AssertionError):
            climb()


def test_greedy(target: Target) -> None:
    """Of programs that take the likeliest token on the device: it is the sampler's, across two windows and ragged."""

    @_patient()
    @given(model_cases(sequences=3))
    def climb(case: Case) -> None:
        by_device, by_host = greedy_tokens(case, target.backend, target.options, count=18)
        assert by_device == by_host

    climb()

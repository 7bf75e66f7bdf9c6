"""The conformance ladder as pytest tests. Needs the [test] extra.

A backend's test file is four lines:

    import pytest
    from mistral_portable.testing.suite import Target, test_conformance

    @pytest.fixture(scope="module", params=["float32"])
    def target(request): return Target(BACKEND, ExecutorOptions(dtype=request.param), Path("xfails/mine.txt"))

Each rung checks its corpus (`corpus.py`), so that a run gives the same result each time, and targets of one process
share the oracle's work. A known gap is a line `RUNG  reason` of the xfail file; the rung must then fail or be
unsupported (a gap that is closed is an error: take the line out). `test_stages` cuts models at every layer, and
`test_greedy` is for backends whose programs are GreedyPrograms.

New cases, of which hypothesis finds the smallest that fails, are drawn with `pytest --fresh-cases N`. The option is
declared by a conftest.py:

    def pytest_addoption(parser): parser.addoption("--fresh-cases", type=int, default=0)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from mistral_portable.boundary import Backend, ExecutorOptions
from mistral_portable.testing.case import Case, Oracles, check
from mistral_portable.testing.corpus import DRIVES, RUNGS, corpus
from mistral_portable.testing.greedy import greedy_tokens
from mistral_portable.testing.scenario import run
from mistral_portable.testing.stages import StagedBackend, difference_from_whole

__all__ = ["DRIVES", "RUNGS", "Target", "climb", "test_conformance", "test_greedy", "test_stages"]

_STAGED = ("rollback", "rows", "pages", "inputs_embeds", "adapters", "closed")
_STAGED_SHARE = 8  # of a target's share of each rung: stages change nothing within a layer


@dataclass(frozen=True)
class Target:
    """The subject of the suite: a backend with options, and its file of known gaps.

    share: 16 takes every 16th case of a corpus only, for targets that are slow or differ in little.
    """

    backend: Backend
    options: ExecutorOptions
    xfails: Path | None = None
    share: int = 1

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

    def chosen(self, rung: str) -> Iterable[tuple[int, Case]]:
        """Its share of the rung's corpus, with the cases' indices: with 50 cases and share 16 at 15, 31, 47."""
        return list(enumerate(corpus(rung).cases))[self.share - 1 :: self.share]


@pytest.mark.parametrize("rung", RUNGS)
def test_conformance(rung: str, target: Target, request: pytest.FixtureRequest) -> None:
    """Every case of the rung passes on the target."""
    climb(rung, target, _fresh_cases(request))


def test_greedy(target: Target, request: pytest.FixtureRequest) -> None:
    """The token that a GreedyProgram takes on its device is the sampler's, across two windows, ragged, and behind rows
    in place of embeddings, with adapters."""

    def same(case: Case) -> None:
        by_device, by_host = greedy_tokens(case, target.backend, target.options, count=18)
        assert by_device == by_host

    for rung in ("ragged", "inputs_embeds", "adapters"):
        if fresh := _fresh_cases(request):
            _on_fresh_cases(rung, same, fresh // target.share)
        else:
            for _, case in target.chosen(rung):
                same(case)


@pytest.mark.parametrize("rung", _STAGED)
def test_stages(rung: str, target: Target, request: pytest.FixtureRequest) -> None:
    """A model with a stage for each layer passes; where the whole is batch_invariant, it has the same bits."""
    backend, drive = StagedBackend(target.backend), DRIVES.get(rung, run)

    def same(case: Case, oracles: Oracles) -> None:
        result = check(case, backend, target.options, oracles, drive)
        assert result.status == "pass", f"{target.backend.name}, {rung}: {result}\n{case}"
        if result.batch_invariant:
            assert not difference_from_whole(case, target.backend, target.options), case

    found, share = corpus(rung), target.share * _STAGED_SHARE
    if fresh := _fresh_cases(request):
        _on_fresh_cases(rung, lambda case: same(case, Oracles()), fresh // share)
    else:
        for _, case in replace(target, share=min(share, len(found.cases))).chosen(rung):
            same(case, found.oracles)


def climb(rung: str, target: Target, fresh: int = 0) -> None:
    """Check the rung on the target; on its corpus, or on `fresh` new cases if that is not 0.

    Raises AssertionError for the first case that fails, or that none does where a gap is known.
    """
    name, drive = target.backend.name, DRIVES.get(rung, run)
    if target.known_gap(rung) is not None:
        found = corpus(rung)
        statuses = (check(case, target.backend, target.options, found.oracles, drive).status for case in found.cases)
        assert any(status != "pass" for status in statuses), f"{name}: {rung} passes: the gap is closed, take it out"
    elif fresh:

        def passes(case: Case) -> None:
            result = check(case, target.backend, target.options, Oracles(), drive)
            assert result.status == "pass", f"{name}: {result}"

        _on_fresh_cases(rung, passes, fresh // target.share)
    else:
        for index, case in target.chosen(rung):
            result = check(case, target.backend, target.options, corpus(rung).oracles, drive)
            assert result.status == "pass", (
                f"{name}: {result}\n"
                f"The case is mistral_portable.testing.corpus.corpus({rung!r}).cases[{index}]: {case}\n"
                f"For the smallest case that fails: pytest --fresh-cases 1000 -k {rung!r}"
            )


def _fresh_cases(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fresh-cases", 0))


def _on_fresh_cases(rung: str, test: Callable[[Case], None], count: int) -> None:
    # Whoever runs this may have a slow machine; the rest is the profile's that is loaded now.
    patient = settings(
        max_examples=max(1, count),
        deadline=None,
        derandomize=False,  # hypothesis draws the same cases each time where it finds itself in CI
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    patient(given(RUNGS[rung])(test))()

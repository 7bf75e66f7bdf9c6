"""The ladder can fail: every mutant falls from the rung that is named beside it, and every rung catches one.

What rounds as it says it does passes.
"""

from pathlib import Path

import pytest
from conformance.mutants import MUTANTS, Mutant
from conformance.rounded import HONEST
from hypothesis import Phase, given, settings

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.reference import BACKEND
from mistral_portable.testing.case import Case, check
from mistral_portable.testing.suite import RUNGS, Target, test_conformance

__all__: list[str] = []

ladder = test_conformance
del test_conformance  # here it is a function under test, not a test
OPTIONS = ExecutorOptions(dtype="float32")


class Caught(Exception):
    pass


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str) -> None:
    rung, make = MUTANTS[name]

    # The same cases each time, and none is made smaller: it is enough that one fails.
    @settings(derandomize=True, database=None, phases=[Phase.generate])
    @given(RUNGS[rung])
    def climb(case: Case) -> None:
        result = check(case, Mutant(name, make), OPTIONS)
        if result.status == "fail":
            raise Caught(result.note)

    with pytest.raises(Caught):
        climb()


@pytest.mark.parametrize("name", HONEST)
def test_honest_rounding_passes(name: str) -> None:
    rung, make = HONEST[name]
    ladder(rung, Target(Mutant(name, make), OPTIONS))


def test_every_rung_catches_something() -> None:
    assert {rung for rung, _ in MUTANTS.values()} == set(RUNGS)


def test_known_gap_is_expected_to_fail(tmp_path: Path) -> None:
    xfails = tmp_path / "mutant.txt"
    xfails.write_text("op.add  adds a to itself\n")
    ladder("op.add", Target(Mutant("mutant", MUTANTS["a + a"][1]), OPTIONS, xfails))


def test_closed_gap_is_an_error(tmp_path: Path) -> None:
    xfails = tmp_path / "reference.txt"
    xfails.write_text("op.add  was wrong once\n")
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        ladder("op.add", Target(BACKEND, OPTIONS, xfails))


def test_gap_without_reason_is_an_error(tmp_path: Path) -> None:
    xfails = tmp_path / "reference.txt"
    xfails.write_text("op.add\n")
    with pytest.raises(AssertionError, match=r"op\.add has no reason"):
        ladder("op.add", Target(BACKEND, OPTIONS, xfails))

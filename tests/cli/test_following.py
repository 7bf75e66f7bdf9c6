"""A process that follows the first one of those that share a model: what it says."""

import sys
import warnings
from typing import Any

import pytest
from cli.processes import invoke


def test_a_process_that_follows_says_what_its_executor_warns_of_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All else is of the model, and the first process says it."""
    registry: dict[str | tuple[str, type[Warning], int], int] = {}

    def load(**arguments: Any) -> None:
        print("loading")
        print("loading", file=sys.stderr)
        for module, said in (
            ("mistral_portable_torch.matrices", "no C\ncompiler"),
            ("mistral_portable.engine.load", "the window is inferred"),
            ("torch.cuda", "an old driver"),
        ):
            for _ in range(2):
                warnings.warn_explicit(said, UserWarning, f"{module}.py", 1, module, registry)
        raise SystemExit(0)

    monkeypatch.setattr("mistral_portable.cli.loading.load", load)
    monkeypatch.setenv("RANK", "1")
    result = invoke("run", "Once", "--backend", "torch", "--tensor-parallel", "2")
    assert (result.status, result.out, result.err) == (0, "", "note: process 1: no C compiler\n")

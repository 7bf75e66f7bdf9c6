"""The embedded model, and a session of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_sessions import CHAT, GREEDY

import mistral_portable as mp
from mistral_portable.cache import StepPlan


@pytest.fixture(scope="session")
def tiny() -> mp.Model:
    return mp.load("tiny", backend="reference")


@pytest.fixture
def model() -> Iterator[mp.Model]:
    with mp.load("tiny", backend="numba", max_lanes=2) as model:
        yield model


@pytest.fixture
def file(model: mp.Model, tmp_path: Path) -> Path:
    """A session of `CHAT` and 5 tokens of its answer."""
    model.generate(CHAT, **GREEDY)
    model.save_session(tmp_path / "chat.session")
    return tmp_path / "chat.session"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each step from now on, whatever model makes it."""
    sizes: list[int] = []
    make = mp.Model.__init__

    def watched(self: mp.Model, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        for name in ("step", "submit"):
            if hasattr(self.program, name):
                run = getattr(self.program, name)
                monkeypatch.setattr(self.program, name, counting(run), raising=False)

    def counting(run: Any) -> Any:
        def step(plan: StepPlan, *arguments: Any, **options: Any) -> Any:
            sizes.append(len(plan.tokens))
            return run(plan, *arguments, **options)

        return step

    monkeypatch.setattr(mp.Model, "__init__", watched)
    return sizes

"""The embedded model, and a session of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_sessions import CHAT, GREEDY

import mistral_portable as mp


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

"""The embedded model, served on the loopback."""

from collections.abc import Iterator

import pytest
from serving import Running, serving

import mistral_portable as mp


@pytest.fixture(scope="module")
def model() -> Iterator[mp.Model]:
    with mp.load("tiny", backend="numba", max_lanes=4) as model:
        yield model


@pytest.fixture(scope="module")
def server(model: mp.Model) -> Iterator[Running]:
    with serving(model) as running:
        yield running

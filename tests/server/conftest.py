"""The embedded model, served on the loopback, and what the tests of the page need."""

from collections.abc import Iterator

import pytest
from server.page_fixtures import browser, browser_page, context, fake, page, running_fake
from serving import Running, serving

import mistral_portable as mp

__all__ = ["browser", "browser_page", "context", "fake", "model", "page", "running_fake", "server"]


@pytest.fixture(scope="module")
def model() -> Iterator[mp.Model]:
    with mp.load("tiny", backend="numba", max_lanes=4) as model:
        yield model


@pytest.fixture(scope="module")
def server(model: mp.Model) -> Iterator[Running]:
    with serving(model) as running:
        yield running

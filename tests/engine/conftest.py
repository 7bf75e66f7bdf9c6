"""The embedded model, loaded once for the folder."""

import pytest

import mistral_portable as mp


@pytest.fixture(scope="session")
def tiny() -> mp.Model:
    return mp.load("tiny", backend="reference")

"""Addresses of clusters: what cannot be one is an error at once, in one line."""

import os
import socket
from pathlib import Path

import pytest

from mistral_portable import clusters as module
from mistral_portable.clusters import check_address, connect
from mistral_portable.errors import BackendError, InputError


@pytest.fixture
def ray_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setattr(os, "environ", dict(os.environ))  # what is set there is Ray's


@pytest.mark.usefixtures("ray_is_there")
@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.1:6379", "[::1]:6379", "head.example:1"])
def test_addresses(address: str) -> None:
    check_address(address)


@pytest.mark.usefixtures("ray_is_there")
@pytest.mark.parametrize("address", ["", "nonsense", "host:", ":1", "host:0", "host:65536", "ray://host:1", "a b:1"])
def test_what_is_none_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"must be local, auto, or HOST:PORT"), connect(address):
        pass


@pytest.mark.usefixtures("ray_is_there")
def test_a_port_that_nobody_listens_to() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(BackendError, match=f"ray={address}: no cluster answers at {address}"), connect(address):
            pass


@pytest.mark.usefixtures("ray_is_there")
@pytest.mark.parametrize("told", ["by a file", "by a variable"])
def test_a_cluster_of_this_machine_that_has_ended(told: str, tmp_path: Path) -> None:
    """Ray itself would try for minutes."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        if told == "by a file":
            (tmp_path / "ray").mkdir()
            (tmp_path / "ray/ray_current_cluster").write_text(f"{address}\n")
            os.environ["RAY_TMPDIR"] = str(tmp_path)
        else:
            os.environ["RAY_ADDRESS"] = address
        with pytest.raises(BackendError, match=f"ray=auto: no cluster answers at {address}: .*give"), connect("auto"):
            pass


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pip install 'mistral-portable\[ray\]'"):
        check_address("local")

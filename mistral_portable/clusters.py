"""Connections to a Ray cluster, or to one that is started on this machine."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from mistral_portable.errors import BackendError, InputError

__all__ = ["check_address", "connect", "join"]

_PATIENCE = 10.0  # seconds in which a cluster's head must take a connection; ray.init itself tries for minutes


def check_address(address: str) -> None:
    """Check that Ray is installed, and the form of an address: "local" (Ray is started here), "auto" (the cluster that
    this machine belongs to), or HOST:PORT of a cluster's head. Call it before Ray is imported for the first time: a
    cluster checks a token by default, and Ray reads then from the environment whether it is to show its own
    (~/.ray/auth_token).

    Raises BackendError without Ray, InputError for another address.
    """
    if find_spec("ray") is None:
        raise BackendError("--ray needs Ray: pip install 'mistral-portable[ray]'")
    if address not in ("local", "auto") and _host_and_port(address) is None:
        raise InputError(f"ray={address!r:.80} must be local, auto, or HOST:PORT of a cluster's head")
    if _host_and_port(address):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def join(address: str, *, cpus: int = 1) -> None:
    """Connect this process to Ray; "local" and "auto" keep a connection that is there.

    cpus: the most that its tasks need at once; Ray, if started here, offers as many, whatever there are.
    Raises the errors of `check_address`, BackendError if there is no cluster that answers, or the process is connected
    to another one than HOST:PORT.
    """
    check_address(address)
    import ray

    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in ("local", "auto", here):
            raise BackendError(f"ray={address}: this process is connected to {here}: call ray.shutdown() first")
        return
    place = _found_by_ray() if address == "auto" else address
    if (head := _host_and_port(place)) is not None:
        try:
            socket.create_connection(head, _PATIENCE).close()
        except OSError as error:
            what = f"ray={address}: no cluster answers at {place}: {error.strerror or error}"
            raise BackendError(what if place == address else f"{what}; give HOST:PORT of a head that runs") from error
    settings = {"num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False} if address == "local" else {}
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **settings)
    except Exception as error:  # a bare one, if Ray has not started within 30 s
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BackendError(f"ray={address}: {lines[0]}") from error
    if main:
        signal.signal(signal.SIGTERM, before)  # Ray has put its own in its place
    logging.getLogger("ray").setLevel(logging.ERROR)


@contextmanager
def connect(address: str, *, cpus: int = 1) -> Iterator[None]:
    """Connect to Ray for the block, whose end ends all that it has started there, but for what Ray calls detached.

    Takes and raises what `join` does. A connection that was there before stays.
    """
    check_address(address)
    import ray

    connected = ray.is_initialized()
    join(address, cpus=cpus)
    try:
        yield
    finally:
        if not connected:
            ray.shutdown()


def _found_by_ray() -> str:
    """The head that Ray itself finds: by RAY_ADDRESS, or the one that `ray start` has joined or started here."""
    from ray._private.services import get_ray_address_from_environment  # there is no public name

    try:
        return str(get_ray_address_from_environment("auto", None))
    except ConnectionError as error:
        raise BackendError("ray=auto: this machine belongs to no cluster: give HOST:PORT of its head") from error


def _host_and_port(address: str) -> tuple[str, int] | None:
    """Both parts: "10.0.0.1:6379" -> ("10.0.0.1", 6379), "[::1]:6379" -> ("::1", 6379). None if it has others."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):([0-9]{1,5})", address)
    if found is None or not 0 < int(found[2]) < 65536:
        return None
    return found[1].strip("[]"), int(found[2])

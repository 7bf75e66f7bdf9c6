"""The process that runs MLX: its threads do not survive a fork, and a computation in the child would hang."""

import os

from mistral_portable.errors import BackendError

__all__ = ["in_forked_child", "require_own_process"]

_STARTED_IN = os.getpid()  # this module is imported when the first program is prepared


def in_forked_child() -> bool:
    """Whether this process was forked from the one that started the MLX executor."""
    return os.getpid() != _STARTED_IN


def require_own_process() -> None:
    """Raise BackendError in a forked child of the process that started the MLX executor."""
    if in_forked_child():
        raise BackendError(
            f"MLX was started in process {_STARTED_IN} and does not run in its forked child {os.getpid()}: start "
            "processes by 'spawn' or 'forkserver', or fork before the first model is loaded"
        )

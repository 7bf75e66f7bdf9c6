"""OwnProcess: the process that runs a framework whose threads do not survive a fork."""

import os

from mistral_portable.errors import BackendError

__all__ = ["OwnProcess"]


class OwnProcess:
    """Made when a framework starts. In a child that is forked later, a computation would hang: it is refused."""

    def __init__(self, framework: str) -> None:
        """framework: its name in the error, such as "JAX"."""
        self._framework = framework
        self._started_in = os.getpid()

    @property
    def forked(self) -> bool:
        """Whether this process is a forked child of the one that started the framework."""
        return os.getpid() != self._started_in

    def require(self) -> None:
        """Raise BackendError in a forked child."""
        if self.forked:
            raise BackendError(
                f"{self._framework} was started in process {self._started_in} and does not run in its forked child "
                f"{os.getpid()}: start processes by 'spawn' or 'forkserver', or fork before the first model is loaded"
            )

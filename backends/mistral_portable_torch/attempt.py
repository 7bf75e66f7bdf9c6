"""Kernels that are compiled when they are first called, and what is done where that fails."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Attempt"]


class Attempt:
    """Compiled kernels, of which it is known only when they are called whether they work on this machine.

    Triton needs a C compiler, and a GPU that is not too old for it. After the first error the plain way is taken, from
    then on; a warning says so.
    """

    def __init__(self, what: str) -> None:
        """what: a sentence on what is slow without them, for the warning."""
        self._what, self._failed = what, False

    def run(self, compiled: Callable[[], Tensor], plain: Callable[[], Tensor]) -> Tensor:
        """The result of `compiled`, or of `plain` if that has failed. Memory that runs out is no such failure."""
        if not self._failed:
            try:
                return compiled()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers raise errors of many types
                self._failed = True
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(
                    f"{self._what}, because kernels cannot be compiled here ({reason}): install Triton and a C "
                    "compiler (gcc), or use a GPU of compute capability 7.0 or later",
                    stacklevel=3,
                )
        return plain()

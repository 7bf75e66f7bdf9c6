"""Kernels that are compiled when they are first called, and what is done where that fails."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from textwrap import shorten
from typing import TypeVar

import torch

__all__ = ["Attempt", "why_not_compiled"]

Result = TypeVar("Result")

_COMPILERS = {
    "triton.errors": ("TritonError",),
    "torch._dynamo.exc": ("BackendCompilerFailed",),
    "torch._inductor.exc": ("TritonMissing", "GPUTooOldForTriton"),
}
"""Errors of compilers, by the module that has them."""

_WORDS = (
    "Failed to find C",
    "active drivers",
    "libcuda.so cannot found",
    "Cannot find ptxas",
    "no kernel image is available",
    "device kernel image is invalid",
)
"""Words in other errors of Triton and CUDA: no compiler, no driver, not for this card."""


class Attempt:
    """Compiled kernels, of which it is known only when they are called whether they work on a device.

    Triton needs a C compiler, and a GPU that is not too old for it. After an error of a compiler the plain way is taken
    on that device, from then on; a warning says so.
    """

    def __init__(self, what: str) -> None:
        """what: a sentence on what is slow without them, for the warning."""
        self._what, self._failed = what, set[torch.device]()

    def run(self, device: torch.device, compiled: Callable[[], Result], plain: Callable[[], Result]) -> Result:
        """The result of `compiled`, or of `plain` if that could not be compiled. All other errors are raised."""
        if device not in self._failed:
            try:
                return compiled()
            except Exception as error:
                reason = why_not_compiled(error)
                if reason is None:
                    raise
                self._failed.add(device)
                warnings.warn(f"{self._what}, because {reason}", stacklevel=3)
        return plain()


def why_not_compiled(error: Exception) -> str | None:
    """The reason why kernels cannot be compiled here, with the remedy; None if an error is none of a compiler.

    Example: RuntimeError("Failed to find C compiler.") -> "kernels cannot be compiled here (Failed to find C
    compiler.): install Triton and ..."
    """
    # What has been raised is in a module that has been imported.
    known = tuple(
        getattr(sys.modules[module], name)
        for module, names in _COMPILERS.items()
        for name in names
        if hasattr(sys.modules.get(module), name)
    )
    said = str(error).strip() or type(error).__name__
    # ImportError: of a broken Triton; OSError: its cache cannot be written, or its compiler is not where CC says.
    ours = isinstance(error, (subprocess.CalledProcessError, ImportError, OSError, *known))
    if not ours and not any(words in said for words in _WORDS):
        return None
    return (
        f"kernels cannot be compiled here ({shorten(said, 200)}): install Triton and a C compiler (gcc), or use a "
        "GPU of compute capability 7.0 or later"
    )

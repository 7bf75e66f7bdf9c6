"""The installed torch's version, read without importing torch: that takes seconds, and `auto` asks in every process."""

from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

__all__ = ["OLDEST", "Build", "installed_build"]

OLDEST = (2, 11)
"""The first version with every function that this package calls."""


@dataclass(frozen=True)
class Build:
    """version: "2.13.0+cpu", say. cuda: the CUDA version that torch was built for, or None."""

    version: str
    cuda: str | None

    @property
    def too_old(self) -> bool:
        """Whether it is older than OLDEST."""
        return tuple(int(part) for part in self.version.split(".")[:2]) < OLDEST


def installed_build() -> Build | None:
    """The installed torch, from its version file; None if it is not installed."""
    package = find_spec("torch")
    if package is None or package.origin is None:
        return None
    spec = spec_from_file_location("torch_version", Path(package.origin).with_name("version.py"))
    if spec is None or spec.loader is None:
        return None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return Build(module.__version__, module.cuda)

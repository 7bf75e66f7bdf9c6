"""Registry of backends: the reference, and those that the entry-point group `mistral_portable.backends` names."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from mistral_portable.boundary.backend import Availability, Backend
from mistral_portable.boundary.quantizer import QuantizingBackend
from mistral_portable.errors import BackendError

__all__ = ["GROUP", "Candidate", "candidates", "select", "select_quantizing"]

GROUP = "mistral_portable.backends"

# The oracle is always there, also in a tree that is not installed and has no metadata.
_REFERENCE = EntryPoint("reference", "mistral_portable.reference:BACKEND", GROUP)

# What to install for the executors of this project that are missing from an installation.
_INSTALL = {
    "numba": "pip install --upgrade mistral-portable",
    "jax": "pip install --upgrade 'mistral-portable[jax]'",
    "mlx": "pip install --upgrade 'mistral-portable[mlx]'",
    "torch": "pip install --upgrade 'mistral-portable[torch]'",
}


@dataclass(frozen=True)
class Candidate:
    """A name, the answer of `probe`, and the backend itself (None: not installed, or its import failed)."""

    name: str
    availability: Availability
    backend: Backend | None


def candidates() -> tuple[Candidate, ...]:
    """All backends that are installed or known by name: those that are refused first, then the best score first."""
    found: dict[str, Candidate] = {}
    for entry in (_REFERENCE, *entry_points(group=GROUP)):
        found.setdefault(entry.name, _load(entry))
    for name, command in _INSTALL.items():
        found.setdefault(name, Candidate(name, Availability(0, f"not installed: {command}"), None))
    return tuple(sorted(found.values(), key=_rank))


def _rank(candidate: Candidate) -> tuple[bool, int, str]:
    """The rank of a candidate for "auto": the least one is taken, or refused."""
    return not candidate.availability.refused, -candidate.availability.score, candidate.name


def select(name: str = "auto") -> Backend:
    """The backend of that name, or for "auto" the usable one with the best score.

    Raises BackendError, with the reason and the remedy, for an unknown name or one that cannot run here, and for "auto"
    if one was asked for what this machine lacks (`Availability.refused`).
    """
    entries = {entry.name: entry for entry in (*entry_points(group=GROUP), _REFERENCE)}
    # To probe the others would import their frameworks.
    known = (_load(entries[name]),) if name in entries else candidates()
    if name == "auto":
        name = known[0].name
    for candidate in known:
        if candidate.name == name:
            if candidate.backend is None or candidate.availability.score <= 0:
                raise _cannot_run(name, candidate.availability)
            return candidate.backend
    names = ", ".join(candidate.name for candidate in known)
    raise BackendError(
        f"backend {name!r} is unknown: choose one of auto, {names}, or install the package that provides it"
    )


def select_quantizing() -> QuantizingBackend:
    """The first backend by name that makes ggml blocks and can run here.

    Raises BackendError if there is none, or if one was asked for what this machine lacks (`Availability.refused`).
    """
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            backend = entry.load()
            if not isinstance(backend, QuantizingBackend):
                continue
            availability = backend.probe()
        except Exception:  # as in _load; `backends` says why
            continue
        if availability.refused:
            raise _cannot_run(entry.name, availability)
        if availability.score > 0:
            return backend
    raise BackendError(f"no backend that quantizes can run here: {_INSTALL['numba']}")


def _cannot_run(name: str, availability: Availability) -> BackendError:
    return BackendError(f"backend {name!r} cannot run here: {availability.reason}")


def _load(entry: EntryPoint) -> Candidate:
    try:
        backend: Backend = entry.load()
        return Candidate(entry.name, backend.probe(), backend)
    except Exception as error:  # a third party's plugin must not break the others
        return Candidate(entry.name, Availability(0, f"its import failed: {type(error).__name__}: {error}"), None)

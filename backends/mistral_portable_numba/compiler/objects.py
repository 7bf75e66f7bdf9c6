"""Compiled kernels: made in child processes, cached on disk, loaded into this process by LLVM.

Only the children import Numba, and they compile in parallel; of several processes that lack the same kernels, one
compiles them. A file of the cache is FOLDER/kernels/ISA/NAME-DIGEST.o: the SHA-256 of an object, and the object. The
digest covers all that the machine code depends on: the sources that the kernel imports, the instruction set, the system
and the versions of the compilers. So no stale object is ever loaded; a damaged one is compiled again. Of each kernel
the VERSIONS newest objects are kept.
"""

import hashlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm

from mistral_portable.boundary import COMPILING
from mistral_portable.errors import BackendError, NotKeptWarning
from mistral_portable_numba.compiler.children import compiled
from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.kernels.registry import MODULES

__all__ = [
    "VERSIONS",
    "LoadedKernels",
    "default_folder",
    "digest",
    "host_triple",
    "object_path",
    "write_object",
    "write_whole",
]

Progress = Callable[[str, int, int], None]

PATIENCE = 600.0
"""Seconds to wait for another process that compiles: more than all kernels take on two slow cores."""

VERSIONS = 4
"""Objects of a kernel that are kept, the newest: installations of different versions may share the folder."""


def default_folder() -> Path:
    """The cache folder: $MISTRAL_PORTABLE_CACHE, or else one in the user's own cache folder."""
    if chosen := os.environ.get("MISTRAL_PORTABLE_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "mistral_portable"


class LoadedKernels:
    """The addresses of kernels, whose code stays loaded as long as this object lives."""

    def __init__(self, names: Iterable[str], isa: Isa, folder: Path, progress: Progress | None = None) -> None:
        """Compile the kernels that are missing in `folder`, and load all. A folder that cannot be written to, as it is
        read-only or its disk is full, costs a warning.

        Raises BackendError for a kernel that does not exist, or if the compiler fails.
        """
        wanted = sorted(set(names))
        if unknown := [name for name in wanted if name not in MODULES]:
            raise BackendError(f"backend 'numba' has no kernel {unknown[0]!r}")
        found = _found(wanted, isa, folder)
        if len(found) < len(wanted):
            found |= _made([name for name in wanted if name not in found], isa, folder, progress)
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_triple(host_triple()).create_target_machine()
        # LLVM's own memory manager may put code and its constants further apart than 2 GiB, which ends the process.
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine, use_lmm=True)
        for code in found.values():
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self._addresses = {name: int(self._engine.get_function_address(name)) for name in found}

    @property
    def names(self) -> Iterable[str]:
        """The names of the kernels."""
        return self._addresses.keys()

    def __getitem__(self, name: str) -> int:
        """The address of a kernel."""
        return self._addresses[name]


def object_path(folder: Path, name: str, isa: Isa) -> Path:
    """The file of a kernel's object in a cache folder."""
    return folder / "kernels" / isa.name / f"{name}-{digest(name, isa)}.o"


def write_object(path: Path, code: bytes) -> None:
    """Write an object and its hash; remove old objects of the same kernel. Raises OSError, and leaves no new file."""
    write_whole(path, hashlib.sha256(code).digest() + code)
    _remove_old(path)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that no reader sees a part of it. Raises OSError, and leaves no new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(data)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:  # a full disk, Ctrl-C
            os.unlink(file.name)
            raise


def _remove_old(path: Path) -> None:
    """Remove all objects of this kernel but the VERSIONS newest, of which `path` is one.

    A process that is about to read one of the older ones compiles it again.
    """
    kernel = path.name.rpartition("-")[0]
    ages: dict[Path, float] = {}
    for other in path.parent.glob(f"{kernel}-*.o"):
        with suppress(OSError):  # another process has removed it
            ages[other] = other.stat().st_mtime
    ages.pop(path, None)
    for old in sorted(ages, key=lambda other: ages[other], reverse=True)[VERSIONS - 1 :]:
        with suppress(OSError):
            old.unlink()


@cache
def host_triple() -> str:
    """This process's system in LLVM's terms; JIT-compiled code is ELF on Windows, too."""
    triple: str = llvm.get_process_triple()
    return f"{triple}-elf" if sys.platform == "win32" else triple


def _found(names: Iterable[str], isa: Isa, folder: Path) -> dict[str, bytes]:
    """The objects that a cache folder has, by kernel."""
    return {name: code for name in names if (code := _read(object_path(folder, name, isa))) is not None}


def _made(names: list[str], isa: Isa, folder: Path, progress: Progress | None) -> dict[str, bytes]:
    """Compile kernels, or find what another process compiled meanwhile; their objects, also where none can be kept."""
    refused = False
    with _alone(folder / "kernels" / isa.name, progress):
        found = _found(names, isa, folder)
        missing = [name for name in names if name not in found]
        if missing and progress is not None:
            progress(COMPILING, 0, len(missing))
        with closing(compiled(missing, isa)) as objects:
            for done, (name, code) in enumerate(objects, 1):
                found[name] = code
                try:
                    write_object(object_path(folder, name, isa), code)
                except OSError as error:
                    if not refused:
                        _warn(folder, error.strerror or str(error))
                    refused = True
                if progress is not None:
                    progress(COMPILING, done, len(missing))
    return found


@contextmanager
def _alone(folder: Path, progress: Progress | None) -> Iterator[None]:
    """Let one process at a time compile into a folder, so that the next one finds what it made.

    The system frees the lock of a process that dies. Where files cannot be locked or written, and when another process
    has kept the lock for PATIENCE seconds, as one that is stopped does, nobody waits: then both compile.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        with suppress(OSError, NotImplementedError):  # a Timeout is an OSError
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if progress is not None:
                    progress("waiting for another process that compiles kernels", 0, 1)
                lock.acquire(timeout=PATIENCE)
        yield
    finally:
        lock.release()


def _read(path: Path) -> bytes | None:
    """The object in a file; None if the file is missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] and len(data) > 32 else None


def _warn(folder: Path, reason: str) -> None:
    warnings.warn(
        f"compiled kernels cannot be kept in {folder} ({reason}): each start compiles them anew; "
        "set MISTRAL_PORTABLE_CACHE to a folder with room",
        NotKeptWarning,
        stacklevel=2,
    )


def digest(name: str, isa: Isa) -> str:
    """24 hex digits that change with anything that the machine code of a kernel depends on."""
    return _digest(Path(__file__).parent.parent, f"kernels/{MODULES[name]}.py", (isa, host_triple(), *_compilers()))


@cache  # a program has a dozen kernels, and tests have thousands of programs
def _digest(package: Path, module: str, maker: tuple[Isa, str, str, str]) -> str:
    """The digest of the kernels of a module. maker: the instruction set, the system, the versions of the compilers."""
    content = hashlib.sha256(repr(maker).encode())
    for path, source in _sources(package, module).items():
        content.update(f"\0{path}\0".encode() + source)
    return content.hexdigest()[:24]


@cache
def _compilers() -> tuple[str, str]:
    """The versions of Numba and llvmlite: read once, as that takes 0.6 ms, as long as loading a kernel."""
    return version("numba"), version("llvmlite")


_IMPORT = re.compile(rb"^from mistral_portable_numba\.([\w.]+) import", re.MULTILINE)


def _sources(package: Path, module: str) -> dict[str, bytes]:
    """The sources that a kernel's machine code depends on, by path in the package, sorted.

    These are its module, the compiler's toolchain, and the modules of this package that they import, directly or not.
    The registry counts, too, as it chooses what kernels are made with, but not the modules that it imports: all.
    """
    registry = "kernels/registry.py"
    found = {registry: (package / registry).read_bytes()}
    waiting = [module, "compiler/toolchain.py"]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = (package / path).read_bytes()
            waiting += [f"{name.decode().replace('.', '/')}.py" for name in _IMPORT.findall(found[path])]
    return dict(sorted(found.items()))

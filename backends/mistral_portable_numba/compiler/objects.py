"""Kernels as code in this process: compiled in child processes, kept on disk, loaded by LLVM.

Children import Numba, so that a process whose kernels are on disk need not, and they compile side by side. A file is
the SHA-256 of the object and the object. It is named after everything that the code depends on: the kernel's own
sources, versions and instruction set. So nothing stale is ever loaded, a changed kernel leaves the others as they are,
and a damaged file is compiled again.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

import llvmlite.binding as llvm

import mistral_portable
import mistral_portable_numba
from mistral_portable.errors import BackendError
from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.compiler.sources import source_digest

__all__ = ["LoadedKernels", "default_folder", "host_triple", "object_path", "write_object"]

_VERSIONS = 4  # files of one kernel that are kept: those of other installations, which may share the folder

Progress = Callable[[str, int, int], None]


def default_folder() -> Path:
    """Where compiled kernels are kept: $MISTRAL_PORTABLE_CACHE, or else the user's cache folder."""
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
    """The kernels of one program. Their code stays loaded as long as this object lives."""

    def __init__(self, names: Iterable[str], isa: Isa, folder: Path, progress: Progress | None = None) -> None:
        """Compile what is not in `folder`, and load all. Raises BackendError if the compiler fails."""
        wanted = sorted(set(names))
        place = folder / "kernels"
        found = {name: code for name in wanted if (code := _read(object_path(place, name, isa))) is not None}
        if len(found) < len(wanted):
            with tempfile.TemporaryDirectory() as spare:
                missing = [name for name in wanted if name not in found]
                written = _compile(missing, isa, _writable(place) or Path(spare), progress)
                found |= {name: _required(object_path(written, name, isa)) for name in missing}
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_triple(host_triple()).create_target_machine()
        # LLVM's own memory manager may put code and its constants further apart than 2 GiB, which ends the process.
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine, use_lmm=True)
        for code in found.values():
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self._addresses = {name: int(self._engine.get_function_address(name)) for name in found}

    def __getitem__(self, name: str) -> int:
        """The address of a kernel."""
        return self._addresses[name]


def object_path(folder: Path, name: str, isa: Isa) -> Path:
    """The file of a kernel's object for an instruction set of this system: FOLDER/ISA/NAME-DIGEST.o."""
    key = hashlib.sha256(repr((isa, host_triple(), source_digest(name))).encode()).hexdigest()[:24]
    return folder / isa.name / f"{name}-{key}.o"


def write_object(path: Path, code: bytes) -> None:
    """Put an object and its hash where nobody can see half of it. The oldest files of the kernel go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(hashlib.sha256(code).digest() + code)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:  # a full disk, Ctrl-C
            os.unlink(file.name)
            raise
    same = path.parent.glob(f"{path.name.rpartition('-')[0]}-{'?' * 24}.o")
    for old in sorted((each for each in same if each != path), key=_modified, reverse=True)[_VERSIONS - 1 :]:
        with suppress(OSError):  # somebody else removed it, or has it open (Windows)
            old.unlink()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def host_triple() -> str:
    """This process's system as LLVM names it; JIT-compiled code is ELF also on Windows."""
    triple: str = llvm.get_process_triple()
    return f"{triple}-elf" if sys.platform == "win32" else triple


def _read(path: Path) -> bytes | None:
    """The object in a file; None if there is none or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] and len(data) > 32 else None


def _required(path: Path) -> bytes:
    code = _read(path)
    if code is None:
        raise BackendError(f"backend 'numba': the compiled kernel {path} vanished: start again")
    return code


def _writable(folder: Path) -> Path | None:
    """The folder, if files can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def _compile(names: list[str], isa: Isa, folder: Path, progress: Progress | None) -> Path:
    """Compile kernels in two processes, and return the folder."""
    # The formats of 256 columns take some ten times as long as the others: deal them out first.
    ordered = sorted(names, key=lambda name: (not name.startswith("linear_"), not name.endswith(("_k", "_xs")), name))
    children = []
    try:
        for share in filter(None, (ordered[::2], ordered[1::2])):
            # -P: a file in the user's folder that is called numba.py, say, is not imported.
            command = [sys.executable, "-Pm", "mistral_portable_numba.compiler", isa.name, str(folder), *share]
            errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # a pipe could fill while nobody reads it
            children.append((_start(command, errors), errors))
        # A child says when a kernel is done; the shares are alike, so to read one child after the other loses little.
        done = 0
        for child, _ in children:
            assert child.stdout is not None
            for _ in child.stdout:
                done += 1
                if progress is not None:
                    progress("compiling kernels, once per machine", done, len(names))
        for child, errors in children:
            if child.wait():
                errors.seek(0)
                lines = errors.read().strip().splitlines() or [f"exit status {child.returncode}"]
                raise BackendError(f"backend 'numba' could not compile its kernels: {lines[-1]}")
    finally:
        for child, errors in children:
            child.kill()
            child.communicate()
            errors.close()
    return folder


def _start(command: list[str], errors: IO[str]) -> "subprocess.Popen[str]":
    """A compiling process, which finds this package where it is, installed or not."""
    roots = {str(Path(module.__file__ or "").parent.parent) for module in (mistral_portable, mistral_portable_numba)}
    path = [os.environ.get("PYTHONPATH", ""), *(root for root in sorted(roots) if "site-packages" not in root)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    except OSError as error:
        raise BackendError(f"backend 'numba' cannot start {command[0] or 'Python'} to compile: {error}") from error

"""The cache of compiled kernels: children compile each kernel once, damaged files are replaced, any folder works."""

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mistral_portable_numba.compiler import objects
from mistral_portable_numba.compiler.host import host_isa
from mistral_portable_numba.compiler.objects import VERSIONS, LoadedKernels, default_folder, digest, object_path
from mistral_portable_numba.kernels.registry import MODULES

from mistral_portable.errors import BackendError

ISA = host_isa()
NAMES = ("add", "take")
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds both kernels."""
    folder = tmp_path_factory.mktemp("warm")
    LoadedKernels(NAMES, ISA, folder)
    return folder


@pytest.fixture
def copied(warm: Path, tmp_path: Path) -> Path:
    """A copy of the warm folder, which tests may damage."""
    for file in files(warm):
        target = tmp_path / file.relative_to(warm)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The kernels that each child is told to compile; children that start later are added."""
    started: list[list[str]] = []
    popen = subprocess.Popen

    def spy(command: list[str], **options: Any) -> Any:
        started.append(command[4:])
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", spy)
    return started


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.o"))


def everything(folder: Path) -> list[Path]:
    """All files but the lock."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock"]


def add(kernels: LoadedKernels) -> float:
    """1 + 2, by the kernel `add`."""
    one, two, out = np.full(16, 1, np.float32), np.full(16, 2, np.float32), np.zeros(16, np.float32)
    counter, count = np.zeros(8, np.int64), np.ones(1, np.int64)
    addresses = [array.ctypes.data for array in (counter, count, one, two, out)]
    args = np.array([addresses[0], addresses[1], 16, addresses[2], 0, addresses[3], 0, addresses[4], 0], np.int64)
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(kernels["add"])
    kernel(args.ctypes.data, 0, 1)
    assert (out == out[0]).all()
    return float(out[0])


def test_a_cold_folder_compiles_and_a_warm_one_starts_no_child(tmp_path: Path, children: list[list[str]]) -> None:
    calls: list[tuple[str, int, int]] = []
    cold = LoadedKernels(["add", "take", "add"], ISA, tmp_path, lambda *call: calls.append(call))
    assert add(cold) == 3
    assert sorted(children) == [["add"], ["take"]]
    assert [call[1:] for call in calls] == [(0, 2), (1, 2), (2, 2)]
    assert all("once per machine" in call[0] for call in calls)
    assert files(tmp_path) == [object_path(tmp_path, name, ISA) for name in NAMES]
    assert everything(tmp_path) == files(tmp_path)  # no partial files
    children.clear()
    calls.clear()
    warm = LoadedKernels(NAMES, ISA, tmp_path, lambda *call: calls.append(call))
    assert add(warm) == 3
    assert (children, calls) == ([], [])


def test_only_missing_kernels_are_compiled(copied: Path, children: list[list[str]]) -> None:
    files(copied)[0].unlink()
    assert add(LoadedKernels(NAMES, ISA, copied)) == 3
    assert children == [["add"]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:20]),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes()[:32]),
        lambda file: file.write_bytes(file.read_bytes()[:500] + b"?" + file.read_bytes()[501:]),
        lambda file: file.write_bytes(b"\0" * 4096),
    ],
    ids=["empty", "half a hash", "short", "no code", "a changed byte", "zeros"],
)
def test_a_damaged_file_is_replaced(copied: Path, children: list[list[str]], damage: Damage) -> None:
    file = files(copied)[0]
    whole = file.read_bytes()
    damage(file)
    assert add(LoadedKernels(["add"], ISA, copied)) == 3
    assert children == [["add"]]
    assert len(file.read_bytes()) == len(whole)
    LoadedKernels(["add"], ISA, copied)
    assert len(children) == 1


def test_an_object_that_cannot_be_written_is_made_each_time(copied: Path) -> None:
    file = files(copied)[0]
    file.unlink()
    file.mkdir()
    with pytest.warns(UserWarning, match=r"cannot be kept in .*: each start") as caught:
        assert add(LoadedKernels(["add"], ISA, copied)) == 3
    assert "\n" not in str(caught[0].message)


def refusing(call: Callable[..., Any], code: int) -> Callable[..., Any]:
    """The call, which fails with this errno if a file in the folder "full" is asked for."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        if any("full" in str(argument) for argument in (*arguments, options.get("dir"))):
            raise OSError(code, os.strerror(code))
        return call(*arguments, **options)

    return refuse


class Full:
    """A new file, which takes its first 100 bytes."""

    def __init__(self, code: int, **options: Any) -> None:
        self._code, self._file = code, NAMED(**options)
        self.name = self._file.name

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *reason: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[:100])
        self._file.flush()
        raise OSError(self._code, os.strerror(self._code))


NAMED = tempfile.NamedTemporaryFile


@pytest.mark.parametrize(
    ("where", "code"),
    [("folders", errno.EROFS), ("files", errno.EACCES), ("bytes", errno.ENOSPC), ("names", errno.EDQUOT)],
)
def test_a_folder_that_refuses_costs_one_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, where: str, code: int
) -> None:
    """Nothing is kept in it, not even a part of a file, and its kernels work."""
    if where == "folders":
        monkeypatch.setattr(os, "mkdir", refusing(os.mkdir, code))
    elif where == "files":
        monkeypatch.setattr(os, "open", refusing(os.open, code))
    elif where == "bytes":
        monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **options: Full(code, **options))
    else:
        monkeypatch.setattr(os, "replace", refusing(os.replace, code))
    assert add(LoadedKernels(["add"], ISA, tmp_path / "full")) == 3
    (note,) = recwarn
    assert str(note.message).startswith(
        f"compiled kernels cannot be kept in {tmp_path / 'full'} ({os.strerror(code)}):"
    )
    assert everything(tmp_path) == []


def test_a_file_at_the_path_of_the_folder_is_kept(tmp_path: Path, children: list[list[str]]) -> None:
    place = tmp_path / "file"
    place.write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be kept in .*file"):
        assert add(LoadedKernels(["add"], ISA, place)) == 3
    assert place.read_text() == "in the way"
    assert children == [["add"]]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can write, not even root")
def test_a_read_only_folder_makes_each_start_compile(children: list[list[str]]) -> None:
    for _ in range(2):
        with pytest.warns(UserWarning, match="set MISTRAL_PORTABLE_CACHE to a folder with room"):
            assert add(LoadedKernels(["add"], ISA, Path("/proc/self"))) == 3
    assert len(children) == 2  # nothing was kept


def test_objects_in_a_read_only_folder_are_used(
    warm: Path, children: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for call in ("mkdir", "replace"):
        monkeypatch.setattr(os, call, refuse)
    assert add(LoadedKernels(NAMES, ISA, warm)) == 3
    assert children == []


LOAD = """
import sys, pathlib, time
from mistral_portable_numba.compiler.host import host_isa
from mistral_portable_numba.compiler.objects import LoadedKernels
def progress(what, done, total):
    if total == 1 and what.startswith("waiting"):
        return
    print(what, done, flush=True)
    time.sleep(float(sys.argv[2]))
LoadedKernels(sys.argv[3:], host_isa(), pathlib.Path(sys.argv[1]), progress)
"""
"""Load kernels, print the progress of compiling, and rest after each report of it."""


def loading(folder: Path, rest: float, *names: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", LOAD, str(folder), str(rest), *names]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_several_processes_one_compiles(tmp_path: Path) -> None:
    processes = [loading(tmp_path, 0, *NAMES) for _ in range(3)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(map(len, map(str.splitlines, said))) == [0, 0, 3]
    assert everything(tmp_path) == files(tmp_path)
    assert files(tmp_path) == [object_path(tmp_path, name, ISA) for name in NAMES]
    assert add(LoadedKernels(NAMES, ISA, tmp_path)) == 3


def test_nobody_waits_for_ever_for_one_that_is_stopped_or_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = loading(tmp_path, 600, "add")
    assert owner.stdout is not None
    assert owner.stdout.readline()  # it compiles now
    calls: list[str] = []
    monkeypatch.setattr(objects, "PATIENCE", 0.1)
    LoadedKernels(["take"], ISA, tmp_path, lambda what, done, total: calls.append(what))
    assert calls[0] == "waiting for another process that compiles kernels"
    assert len(calls) == 3  # and it compiled
    owner.kill()
    owner.communicate()
    monkeypatch.setattr(objects, "PATIENCE", 300.0)
    del calls[:]
    LoadedKernels(["silu_mul"], ISA, tmp_path, lambda what, done, total: calls.append(what))
    assert not calls[0].startswith("waiting")


def test_loaded_kernels_run_after_their_files_are_deleted(copied: Path) -> None:
    kernels = LoadedKernels(NAMES, ISA, copied)
    for file in files(copied):
        file.unlink()
    assert add(kernels) == 3


def test_a_failing_compiler_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="could not compile its kernels: KeyError: 'no_such_isa'") as caught:
        LoadedKernels(["add"], replace(ISA, name="no_such_isa"), tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_kernel_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no kernel 'no_such_kernel'"):
        LoadedKernels(["no_such_kernel"], ISA, tmp_path)


def test_the_newest_objects_of_a_kernel_are_kept(copied: Path) -> None:
    place = files(copied)[0].parent
    others = [place / f"add-{index:024x}.o" for index in range(VERSIONS + 2)]
    for age, other in enumerate(others):
        other.write_bytes(b"of another version")
        os.utime(other, (1e9 - age, 1e9 - age))
    kept = [place / name for name in ("add_rows-0.o", object_path(copied, "take", ISA).name)]
    kept[0].write_bytes(b"of another kernel")
    object_path(copied, "add", ISA).unlink()
    assert add(LoadedKernels(NAMES, ISA, copied)) == 3
    assert set(files(copied)) == {object_path(copied, "add", ISA), *others[: VERSIONS - 1], *kept}


def test_children_end_if_the_progress_callback_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def spy(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    def interrupt(what: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", spy)
    with pytest.raises(KeyboardInterrupt):
        LoadedKernels(NAMES, ISA, tmp_path, interrupt)
    assert len(started) == 2
    assert all(child.returncode is not None for child in started)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's sources; digests are computed from it."""
    copy = tmp_path / "package"
    shutil.copytree(Path(objects.__file__).parent.parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(objects, "__file__", str(copy / "compiler" / "objects.py"))
    return copy


def digests() -> dict[str, str]:
    objects._digest.cache_clear()
    return {name: digest(name, ISA) for name in MODULES}


EVERY = set(MODULES)
LINEARS = {name for name, module in MODULES.items() if module == "linear"}
ATTENTION = {name for name, module in MODULES.items() if module == "attention"}
ROWS = {name for name, module in MODULES.items() if module == "rows"}
DENSE = {name for name, module in MODULES.items() if module in ("dense", "embedding")}


@pytest.mark.parametrize(
    ("path", "kernels"),
    [
        ("kernels/rows.py", ROWS),
        ("kernels/formats.py", LINEARS),
        ("kernels/kv.py", ATTENTION | {name for name in MODULES if name.startswith("store_")}),
        ("kernels/search.py", {name for name in MODULES if name.startswith("encode_")}),
        ("kernels/exp.py", ATTENTION | ROWS | {"route", "clear", "add_rows"}),
        (
            "compiler/simd/tokens.py",
            LINEARS | ATTENTION | DENSE,
        ),
        ("compiler/simd/emit.py", EVERY),
        ("compiler/simd/vectors.py", EVERY - {"tape"}),
        ("compiler/simd/calls.py", {"tape"}),
        ("compiler/toolchain.py", EVERY),
        ("compiler/objects.py", set()),
        ("kernels/registry.py", EVERY),
        ("team.py", set()),
    ],
)
def test_an_edit_changes_the_digests_of_the_kernels_that_import_the_file(
    package: Path, path: str, kernels: set[str]
) -> None:
    before = digests()
    assert digests() == before
    (package / path).write_text((package / path).read_text() + "# edited\n")
    after = digests()
    assert {name for name in MODULES if after[name] != before[name]} == kernels


def test_the_digest_covers_instruction_set_system_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    isas = (
        ISA,
        replace(ISA, features=f"{ISA.features},+more"),
        replace(ISA, functions=f"{ISA.functions}; a comment"),
        replace(ISA, tokens=ISA.tokens + 1),
    )
    monkeypatch.setattr(objects, "_compilers", objects._compilers.__wrapped__)
    found = [digest("add", isa) for isa in isas]
    monkeypatch.setattr(objects, "host_triple", lambda: "another system")
    found.append(digest("add", ISA))
    for package in ("numba", "llvmlite"):
        monkeypatch.setattr(objects, "version", lambda name, package=package: "9.9" if name == package else "1.0")
        found.append(digest("add", ISA))
    assert len(set(found)) == len(found)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the folders of Linux")
def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_PORTABLE_CACHE", "/somewhere")
    assert default_folder() == Path("/somewhere")
    monkeypatch.setenv("MISTRAL_PORTABLE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_folder() == Path("/caches/mistral_portable")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_folder() == Path("/home/somebody/.cache/mistral_portable")


@pytest.mark.skipif(os.name == "nt", reason="file modes are POSIX")
def test_other_users_may_read_objects(warm: Path) -> None:
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in files(warm))


def test_code_loads_in_a_fragmented_address_space() -> None:
    """Large weights occupy addresses near the code; its sections must still lie within 2 GiB of each other."""
    program = """
import mmap
from mistral_portable_numba.compiler.host import host_isa
from mistral_portable_numba.compiler.objects import LoadedKernels, default_folder
held = []
for turn in range(60):
    held += [mmap.mmap(-1, 2**30), LoadedKernels(["silu_mul", "rms_norm"], host_isa(), default_folder())]
    if turn % 7 == 3:
        del held[len(held) // 2]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)

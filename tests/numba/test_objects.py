"""Compiled kernels on disk: made once, in children; what is damaged is made again; any folder will do."""

import ctypes
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mistral_portable_numba.compiler import objects, sources
from mistral_portable_numba.compiler.isa import host_isa
from mistral_portable_numba.compiler.objects import LoadedKernels, default_folder, object_path, write_object
from mistral_portable_numba.compiler.sources import kernel_module, source_digest
from mistral_portable_numba.kernels.registry import KERNELS

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
    """A copy of it, to be damaged."""
    for file in files(warm):
        target = tmp_path / file.relative_to(warm)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The kernels that each child is told to compile, from now on."""
    started: list[list[str]] = []
    popen = subprocess.Popen

    def spy(command: list[str], **options: Any) -> Any:
        started.append(command[5:])
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", spy)
    return started


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.o"))


def kernels_in(folder: Path) -> list[str]:
    return [file.name.rpartition("-")[0] for file in files(folder)]


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
    assert [call[1:] for call in calls] == [(1, 2), (2, 2)]
    assert all("once per machine" in call[0] for call in calls)
    assert kernels_in(tmp_path) == ["add", "take"]
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == set(files(tmp_path))  # and nothing half-written
    children.clear()
    calls.clear()
    warm = LoadedKernels(NAMES, ISA, tmp_path, lambda *call: calls.append(call))
    assert add(warm) == 3
    assert (children, calls) == ([], [])


def test_only_what_is_missing_is_compiled(copied: Path, children: list[list[str]]) -> None:
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
def test_a_damaged_file_is_made_again(copied: Path, children: list[list[str]], damage: Damage) -> None:
    file = files(copied)[0]
    whole = file.read_bytes()
    damage(file)
    assert add(LoadedKernels(["add"], ISA, copied)) == 3
    assert children == [["add"]]
    assert len(file.read_bytes()) == len(whole)
    LoadedKernels(["add"], ISA, copied)
    assert len(children) == 1


def test_a_folder_in_the_place_of_a_file_is_an_error_of_one_line(copied: Path) -> None:
    file = files(copied)[0]
    file.unlink()
    file.mkdir()
    with pytest.raises(BackendError, match="could not compile") as caught:
        LoadedKernels(["add"], ISA, copied)
    assert "\n" not in str(caught.value)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path, children: list[list[str]]) -> None:
    place = tmp_path / "file"
    place.write_text("in the way")
    assert add(LoadedKernels(["add"], ISA, place)) == 3
    assert place.read_text() == "in the way"
    assert children == [["add"]]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can write, not even root")
def test_a_folder_where_nothing_can_be_written(children: list[list[str]]) -> None:
    for _ in range(2):
        assert add(LoadedKernels(["add"], ISA, Path("/proc/self"))) == 3
    assert len(children) == 2  # nothing was kept


def test_what_is_there_is_used_where_nothing_can_be_written(
    warm: Path, children: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_writable", lambda folder: None)
    assert add(LoadedKernels(NAMES, ISA, warm)) == 3
    assert children == []


def test_two_processes_fill_one_folder(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from mistral_portable_numba.compiler.isa import host_isa\n"
        "from mistral_portable_numba.compiler.objects import LoadedKernels\n"
        "kernels = LoadedKernels(['add', 'take'], host_isa(), pathlib.Path(sys.argv[1]))\n"
        "print(kernels['add'] > 0, kernels['take'] > 0)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["True True\n"] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert kernels_in(tmp_path) == ["add", "take"]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
    assert add(LoadedKernels(NAMES, ISA, tmp_path)) == 3


def test_code_outlives_its_file(copied: Path) -> None:
    kernels = LoadedKernels(NAMES, ISA, copied)
    for file in files(copied):
        file.unlink()
    assert add(kernels) == 3


def test_a_failing_compiler_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="could not compile its kernels: KeyError: 'no_such_kernel'"):
        LoadedKernels(["no_such_kernel"], ISA, tmp_path)


def test_a_child_ends_with_a_progress_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def spy(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", spy)
    with pytest.raises(KeyboardInterrupt):
        LoadedKernels(NAMES, ISA, tmp_path, interrupt)
    assert len(started) == 2
    assert all(child.returncode is not None for child in started)


def test_a_file_is_named_after_the_instruction_set_and_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    first = object_path(Path("x"), "add", ISA)
    assert first.parent == Path("x", ISA.name)
    assert object_path(Path("x"), "add", ISA) == first
    others = [
        object_path(Path("x"), "add", replace(ISA, features=f"{ISA.features},+more")),
        object_path(Path("x"), "add", replace(ISA, functions=f"{ISA.functions}; a comment")),
        object_path(Path("x"), "take", ISA),
    ]
    monkeypatch.setattr(sources, "version", lambda name: "9.9")
    assert len({first, *others, object_path(Path("x"), "add", ISA)}) == 5


QUOTES = '"""'
PACKAGE = Path(sources.__file__).parent.parent


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the sources, to be edited."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.mark.parametrize(
    ("file", "affected"),
    [
        ("kernels/rows.py", {"add", "rms_norm", "rope", "silu_mul", "take"}),
        ("kernels/tape.py", {"tape"}),
        ("kernels/formats.py", {name for name in KERNELS if kernel_module(name) == "linear"}),
        ("kernels/search.py", {name for name in KERNELS if name.startswith("encode_")}),
        ("kernels/kv.py", {name for name in KERNELS if name.startswith(("attention_", "store_"))}),
        ("compiler/simd.py", set(KERNELS)),
        ("compiler/toolchain.py", set(KERNELS)),
        ("kernels/registry.py", set(KERNELS)),
        ("compiler/objects.py", set()),
        ("team.py", set()),
    ],
)
def test_an_edit_changes_the_digests_of_the_kernels_that_import_it(
    package: Path, file: str, affected: set[str]
) -> None:
    before = {name: source_digest(name, package) for name in KERNELS}
    with (package / file).open("a") as source:
        source.write("_added = 1\n")
    assert {name for name in KERNELS if source_digest(name, package) != before[name]} == affected


def test_comments_and_docstrings_change_no_digest(package: Path) -> None:
    before = {name: source_digest(name, package) for name in KERNELS}
    assert before == {name: source_digest(name) for name in KERNELS}
    for path in package.rglob("*.py"):
        text = path.read_text()
        code = text.split(QUOTES, 2)[2] if text.startswith(QUOTES) else text
        path.write_text(f"{QUOTES}Another text.{QUOTES}\n# a comment\n\n{code}")
    assert {name: source_digest(name, package) for name in KERNELS} == before


def test_the_table_of_modules_is_the_registrys() -> None:
    for name, make in KERNELS.items():
        factory = (
            make.func if isinstance(make, partial) else inspect.getclosurevars(make).nonlocals.get("factory", make)
        )
        assert factory.__module__ == f"mistral_portable_numba.kernels.{kernel_module(name)}", name


def test_old_files_of_a_kernel_go(tmp_path: Path) -> None:
    """A few stay, for other installations that share the folder; other kernels' files stay, too."""
    path = object_path(tmp_path, "add", ISA)
    write_object(object_path(tmp_path, "add_rows", ISA), b"code")
    for age in range(8):
        old = path.with_name(f"add-{age:024}.o")
        old.write_bytes(b"old")
        os.utime(old, (1e9 - age, 1e9 - age))
    write_object(path, b"code")
    kept = {file.name for file in files(tmp_path) if file.name.startswith("add-")}
    assert kept == {path.name, *(f"add-{age:024}.o" for age in range(3))}
    assert kernels_in(tmp_path).count("add_rows") == 1


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the folders of Linux")
def test_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_PORTABLE_CACHE", "/somewhere")
    assert default_folder() == Path("/somewhere")
    monkeypatch.setenv("MISTRAL_PORTABLE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_folder() == Path("/caches/mistral_portable")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_folder() == Path("/home/somebody/.cache/mistral_portable")


@pytest.mark.skipif(os.name == "nt", reason="bits of a file are POSIX's")
def test_others_may_read_what_is_kept(warm: Path) -> None:
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in files(warm))


def test_code_loads_wherever_memory_is_left() -> None:
    """Large weights take up the address space near the code: it must not be torn into parts too far from each other."""
    program = """
import mmap
from mistral_portable_numba.compiler.isa import host_isa
from mistral_portable_numba.compiler.objects import LoadedKernels, default_folder, object_path, write_object
from mistral_portable_numba.compiler.sources import kernel_module, source_digest
from mistral_portable_numba.kernels.registry import KERNELS
held = []
for turn in range(60):
    held += [mmap.mmap(-1, 2**30), LoadedKernels(["silu_mul", "rms_norm"], host_isa(), default_folder())]
    if turn % 7 == 3:
        del held[len(held) // 2]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)

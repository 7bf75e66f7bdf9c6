"""AMX: the child that tries it may die or hang, its answer is kept, and kernels for it contain its instructions."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mistral_portable_numba.compiler import amx_probe
from mistral_portable_numba.compiler.amx_probe import amx_works
from mistral_portable_numba.compiler.isa import ISAS
from mistral_portable_numba.compiler.toolchain import assembly

WORKS = "pass"
TRAPS = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
WRONG = "raise SystemExit(3)"
FAILS = "raise ImportError('no module')"
HANGS = "import time; time.sleep(600)"


@pytest.fixture(autouse=True)
def announced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU announces AMX, and the system permits it."""
    monkeypatch.setattr(amx_probe, "announced", lambda: True)
    monkeypatch.setattr(amx_probe, "permit", lambda: True)
    amx_works.cache_clear()
    yield
    amx_works.cache_clear()


def child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the child run this code instead."""
    monkeypatch.setattr(amx_probe, "_CHILD", (sys.executable, "-c", code))


linux = pytest.mark.skipif(sys.platform != "linux", reason="AMX is used on Linux only")


@linux
@pytest.mark.parametrize(("code", "works"), [(WORKS, True), (TRAPS, False), (WRONG, False)])
def test_a_child_answers_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, works: bool) -> None:
    child(monkeypatch, code)
    assert amx_works(tmp_path) == works
    amx_works.cache_clear()
    child(monkeypatch, WRONG if works else WORKS)
    assert amx_works(tmp_path) == works
    amx_works.cache_clear()
    for start in range(3):
        monkeypatch.setattr(amx_probe, "_boot", lambda start=start: f"start {start}")
        assert amx_works(tmp_path) != works
        amx_works.cache_clear()
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


@linux
@pytest.mark.parametrize("content", [b"", b"yes", b"yes\nanother start\n", b"\xff\n\xfe\n"])
def test_a_damaged_answer_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    child(monkeypatch, WRONG)
    for works in (False, True):
        assert amx_works(tmp_path) == works
        amx_works.cache_clear()
        (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
        kept.write_bytes(content)
        child(monkeypatch, WORKS)


@linux
def test_a_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child(monkeypatch, HANGS)
    monkeypatch.setattr(amx_probe, "_PATIENCE", 0.2)
    with pytest.warns(UserWarning, match="not found out .*timed out"):
        assert not amx_works(tmp_path)


@linux
def test_a_child_that_could_not_try_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child(monkeypatch, FAILS)
    with pytest.warns(UserWarning, match="not found out .ImportError: no module.: not used this time"):
        assert not amx_works(tmp_path)
    amx_works.cache_clear()
    child(monkeypatch, WORKS)
    assert amx_works(tmp_path)


@linux
def test_without_the_name_of_the_start_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(amx_probe, "_boot", lambda: "")
    for code, works in ((WORKS, True), (WRONG, False)):
        child(monkeypatch, code)
        assert amx_works(tmp_path) == works
        amx_works.cache_clear()


@linux
def test_a_folder_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child(monkeypatch, WORKS)
    (tmp_path / "kernels").write_text("a file where the folder would be")
    assert amx_works(tmp_path)


def test_it_must_be_announced_and_permitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child(monkeypatch, WORKS)
    for name in ("announced", "permit"):
        with monkeypatch.context() as changed:
            changed.setattr(amx_probe, name, lambda: False)
            assert not amx_works(tmp_path / name)
        amx_works.cache_clear()


@linux
def test_the_real_child_ends_well_or_by_an_illegal_instruction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if not amx_probe.announced():
        pytest.skip("this CPU does not announce AMX")
    status = os.spawnv(os.P_WAIT, sys.executable, [*amx_probe._CHILD])
    assert status in (0, 3, -signal.SIGILL)
    amx_works.cache_clear()


def test_its_instructions_are_in_the_code() -> None:
    listing = assembly("probe", amx_probe._PROBE, ISAS["amx"], "x86_64-unknown-linux-gnu")
    for instruction in ("ldtilecfg", "tileloadd", "tdpbf16ps", "tdpbsud", "tdpbssd", "tilestored", "tilerelease"):
        assert f"\t{instruction}" in listing


@linux
def test_a_forked_child_keeps_the_permission() -> None:
    code = """
import os
from mistral_portable_numba.compiler import amx_probe
if not amx_probe.announced() or not amx_probe.multiply():
    raise SystemExit("skip")
amx_probe.permit = lambda: True  # it is not asked for again
child = os.fork()
if child == 0:
    os._exit(0 if amx_probe.multiply() else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if done.stderr.startswith("skip") or done.returncode == -signal.SIGILL:
        pytest.skip("AMX does not work here")
    assert done.returncode == 0, done.stderr

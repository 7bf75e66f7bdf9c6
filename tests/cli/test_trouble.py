"""Full disks, dangling links, files of nothing or of something else: one line each; and what lasts, off a terminal."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.processes import COMMAND, compile_kernels, invoke
from mistral_portable_numba.compiler.objects import default_folder

from mistral_portable.cli import loading

NOT_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="limits and links of POSIX")


@NOT_POSIX
@pytest.mark.parametrize("name", ["out.gguf", "out"])
def test_a_full_disk_is_said_with_the_path(name: str, tmp_path: Path) -> None:
    """A limit of a file's size looks to NumPy, which writes the tensors, like a full disk."""
    import resource

    done = subprocess.run(
        [*COMMAND, "convert", "tiny", str(tmp_path / name)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)),
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert f"{tmp_path / name}: cannot be written: No space left on device".encode() in done.stderr
    assert list(tmp_path.iterdir()) == []


@NOT_POSIX
def test_dangling_links(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    for line, words in {
        f"run x -m {link}": f"{link}: a link to {tmp_path / 'gone'}, which is not there",
        f"run -f {link}": f"{link}: cannot be read: No such file",
        f"quantize tiny {tmp_path / 'q.gguf'} --imatrix {link}": f"{link}: cannot be read",
        f"perplexity tiny {link}": f"{link}: cannot be read: No such file",
    }.items():
        result = invoke(*line.split())
        assert (result.status in (1, 2), result.out, result.err.count("\n")) == (True, "", 1)
        assert words in result.err
    assert link.is_symlink()


def test_files_of_nothing_and_of_something_else(tmp_path: Path) -> None:
    empty, junk, output = tmp_path / "empty", tmp_path / "junk", tmp_path / "q.gguf"
    empty.touch()
    junk.write_bytes(b"junk\xff")
    for line, words in {
        f"inspect {empty}": "is empty",
        f"run -f {empty}": "the prompt is empty",
        f"perplexity tiny {empty}": "holds no text",
        f"perplexity tiny {junk}": "is not UTF-8 text",
        f"quantize tiny {output} --calibrate {empty}": "holds no text to calibrate on",
        f"quantize tiny {output} --imatrix {empty}": "is empty",
        f"quantize tiny {output} --imatrix {junk}": "not an importance matrix",
        f"run x --session {junk}": "is no session",
        f"run x --adapter {junk}": str(junk),
    }.items():
        result = invoke(*line.split())
        assert (result.status in (1, 2), result.out, result.err.count("\n")) == (True, "", 1)
        assert words in result.err
        assert result.err.startswith("error: ")
    assert junk.read_bytes() == b"junk\xff"


def test_what_lasts_is_a_line_and_what_does_not_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "_LASTS", 0.01)
    with loading.reading("loading tiny") as progress:
        progress("short", 0, 2)
        progress("short", 2, 2)
        progress("compiling", 0, 2)
        while "compiling" not in (said := capsys.readouterr().err):
            time.sleep(0.01)
        progress("compiling", 1, 2)
        progress("weights", 0, 2)
    assert said == "note: loading tiny: compiling\n"
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


@NOT_POSIX
def test_a_cache_that_takes_nothing_is_a_note(tmp_path: Path) -> None:
    """A kernel that is missing is compiled, whatever becomes of it: here a folder is in the way of its file. Other
    things that stand in the way are in `tests/numba/test_objects.py`."""
    compile_kernels()
    shutil.copytree(default_folder() / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns(".lock"))
    for one in tmp_path.glob("kernels/*/add-*.o"):
        one.unlink()
        one.mkdir()
    done = subprocess.run(
        [*COMMAND, "run", "Once", "-n", "2", "--backend", "numba"],
        env={**os.environ, "MISTRAL_PORTABLE_CACHE": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout[:4]) == (0, b"Once")
    *_, last = done.stderr.decode().splitlines()
    assert last.startswith(f"note: compiled kernels cannot be kept in {tmp_path} (Is a directory)")

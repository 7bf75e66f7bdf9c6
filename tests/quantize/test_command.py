"""`quantize` on the command line."""

import os
from pathlib import Path

import pytest
from cli.processes import invoke


def test_the_command(tmp_path: Path) -> None:
    path, text = tmp_path / "q.gguf", tmp_path / "some.txt"
    text.write_text("Once upon a time, there was a kind girl named Jane.", encoding="utf-8")
    result = invoke("quantize", "tiny", str(path), "--type", "Q4_K_M", "--calibrate", str(text), "--threads", "1")
    assert (result.status, result.out) == (0, f"{path}: q4_k_m, 2.1 MiB\n")
    assert "note: the window of 64 is written, but llama.cpp" in result.err  # first, perhaps, that kernels are compiled
    assert invoke("quantize", "tiny", str(path)).status == 2
    assert invoke("quantize", "tiny", str(path), "--overwrite").status == 0
    assert sorted(os.listdir(tmp_path)) == ["q.gguf", "some.txt"]


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("quantize", 2, "SRC DST"),
        ("quantize tiny", 2, "'DST'"),
        ("quantize tiny OUT --type q9_z", 2, "--type 'q9_z': choose one of q2_k, "),
        ("quantize tiny OUT --threads 0", 2, "'--threads'"),
        ("quantize tiny OUT --threads 100000", 1, "--threads 100000: at most"),
        ("quantize tiny OUT --calibrate /no/such/file", 2, "/no/such/file: not a text file in UTF-8"),
        ("quantize tiny OUT --imatrix /no/such/file", 2, "/no/such/file: cannot be read"),
        ("quantize tiny OUT --imatrix a --calibrate b", 2, "give one of them"),
        ("quantize /no/such/model OUT", 1, "/no/such/model"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, line: str, status: int, words: str) -> None:
    result = invoke(*[word.replace("OUT", str(tmp_path / "out")) for word in line.split()])
    assert (result.status, result.out) == (status, "")
    assert result.err.count("\n") == 1
    assert words in result.err
    assert os.listdir(tmp_path) == []

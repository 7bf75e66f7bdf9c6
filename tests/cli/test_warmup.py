"""`warmup`: it compiles what is missing, says so, and fails where nothing can be kept."""

import shutil
from pathlib import Path

import pytest
from cli.processes import invoke
from mistral_portable_numba.compiler.chosen import chosen_isa
from mistral_portable_numba.compiler.objects import default_folder

NUMBA = ("warmup", "tiny", "--backend", "numba")


def test_what_is_missing_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke(*NUMBA).status == 0  # in the folder that all tests share
    place = Path("kernels", chosen_isa().name)
    shutil.copytree(default_folder() / place, tmp_path / place)
    monkeypatch.setenv("MISTRAL_PORTABLE_CACHE", str(tmp_path))
    for name in ("add", "rms_norm"):
        for file in tmp_path.rglob(f"{name}-*.o"):
            file.unlink()
    for said in ("2 kernels compiled", "nothing was to be compiled"):
        result = invoke(*NUMBA)
        assert result.status == 0
        assert result.out.startswith(f"numba: {said}; ready in ")


def test_a_cache_that_takes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MISTRAL_PORTABLE_CACHE", str(tmp_path / "file"))
    result = invoke(*NUMBA)
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1].startswith("error: compiled kernels cannot be kept in ")


def test_backends_that_keep_nothing_run_a_token() -> None:
    result = invoke("warmup", "tiny", "--backend", "reference")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("reference: nothing was to be compiled; ready in ")


def test_a_model_that_is_none_is_an_error() -> None:
    assert invoke("warmup", "no-such-model.gguf").status != 0

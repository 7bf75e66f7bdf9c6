"""Kernels that cannot be compiled are given up, on the device where that is so; all other errors are raised."""

import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from mistral_portable_torch.attempt import Attempt
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import TritonMissing

CPU, META = torch.device("cpu"), torch.device("meta")


class TritonError(Exception):
    """Stands for triton.errors.TritonError, of which CompilationError, OutOfResources and PTXASError are kinds."""


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton.errors", SimpleNamespace(TritonError=TritonError))


def failing(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TritonError("at 3:4: unsupported"), "at 3:4: unsupported"),
        (type("OutOfResources", (TritonError,), {})("out of resource: shared memory"), "out of resource"),
        (RuntimeError("Failed to find C compiler. Please specify via CC\nor else"), "Failed to find C compiler"),
        (RuntimeError("0 active drivers ([]). There should only be one."), "0 active drivers"),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "no kernel image"),
        (subprocess.CalledProcessError(1, "gcc"), "Command 'gcc' returned"),
        (AssertionError("libcuda.so cannot found!"), "libcuda.so"),
        (RuntimeError("Cannot find ptxas"), "ptxas"),
        (PermissionError(13, "Permission denied", "/cache/triton"), "Permission denied"),
        (FileNotFoundError(2, "No such file or directory", "no-gcc"), "No such file"),
        (ImportError("libtriton.so: undefined symbol"), "undefined symbol"),
        (TritonMissing(None), "Cannot find a working triton installation"),
        (BackendCompilerFailed("inductor", ValueError("no such type"), None), "raised: ValueError: no such type"),
    ],
)
def test_a_compilers_error_is_told_once_and_the_plain_way_is_taken(error: Exception, said: str) -> None:
    attempt, tried = Attempt("norms are slow"), []

    def compiled() -> int:
        tried.append(1)
        raise error

    with pytest.warns(UserWarning, match=rf"^norms are slow, because kernels cannot be compiled here \(.*{said}.*gcc"):
        assert attempt.run(CPU, compiled, lambda: 7) == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attempt.run(CPU, compiled, lambda: 8) == 8
    assert len(tried) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: misaligned address"),
        TypeError("attend() got an unexpected argument"),
        AssertionError(),
    ],
)
def test_errors_of_another_kind_are_raised_and_the_kernels_are_tried_again(error: Exception) -> None:
    attempt = Attempt("norms are slow")
    with pytest.raises(type(error)):
        attempt.run(CPU, lambda: failing(error), lambda: None)
    assert attempt.run(CPU, lambda: 7, lambda: 8) == 7


def test_a_device_whose_kernels_cannot_be_compiled_leaves_the_others_theirs() -> None:
    attempt = Attempt("norms are slow")
    with pytest.warns(UserWarning, match="norms are slow"):
        attempt.run(CPU, lambda: failing(TritonError("too old")), lambda: None)
    assert attempt.run(META, lambda: 7, lambda: 8) == 7

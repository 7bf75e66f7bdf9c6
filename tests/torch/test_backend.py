"""Capabilities that the torch executor declares, and the errors for what it cannot do."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mistral_portable_torch import BACKEND, backend, installed, obstacles
from mistral_portable_torch.attention import choose
from mistral_portable_torch.device import Device, find_device
from mistral_portable_torch.installed import Build
from torch_sessions import CONFIG

import mistral_portable as mp
from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.graph import OPS, build
from mistral_portable.graph.passes import select_rows
from mistral_portable.reference import BACKEND as REFERENCE
from mistral_portable.testing import random_weights

HOPPER = Device(torch.device("cuda", 0), "H200", (9, 0))
TURING = Device(torch.device("cuda", 0), "T4", (7, 5))
CPU = find_device("cpu")


def prepared(**options: Any) -> Any:
    return prepare(
        BACKEND,
        select_rows(build(CONFIG), "logits"),
        random_weights(build(CONFIG), 0),
        CacheSpec.from_config(CONFIG, max_context=64, page_size=256),
        ExecutorOptions(**options),
    )


# --- probing ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks a machine without a CUDA GPU")
def test_on_a_cpu_it_scores_below_numba_and_above_the_reference() -> None:
    from mistral_portable_numba import BACKEND as NUMBA

    found = BACKEND.probe()
    assert REFERENCE.probe().score < found.score < NUMBA.probe().score
    assert found.reason.startswith(f"CPU, torch {torch.__version__}")
    assert "attention by sdpa, flex, eager; not flash_attn: it needs a CUDA GPU" in found.reason


def test_on_a_gpu_it_scores_above_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    from mistral_portable_numba import BACKEND as NUMBA

    monkeypatch.setattr(backend, "installed_build", lambda: Build("2.13.0", "13.0"))
    monkeypatch.setattr("mistral_portable_torch.device.find_device", lambda: HOPPER)
    monkeypatch.setattr(Device, "total_memory", 141 * 10**9)
    found = BACKEND.probe()
    assert found.score > NUMBA.probe().score
    assert found.reason.startswith("CUDA, H200, 141 GB, torch 2.13.0: ")
    assert "attention by varlen, sdpa, flex, eager; not flash_attn: flash-attn is not installed: pip" in found.reason


def test_a_cpu_build_is_known_without_importing_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(installed, "find_spec", lambda name: SimpleNamespace(origin=torch.__file__))
    found = BACKEND.probe()
    assert (found.score > 0) == (torch.version.cuda is None)


@pytest.mark.parametrize(
    ("build_found", "message"),
    [
        (None, "torch is not installed: pip install --upgrade 'mistral-portable[torch]'"),
        (Build("2.10.1", None), "torch 2.10.1 is older than 2.11: pip install"),
    ],
)
def test_a_missing_or_old_torch_is_reported(
    build_found: Build | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "installed_build", lambda: build_found)
    found = BACKEND.probe()
    assert found.score == 0
    assert found.reason.startswith(message)


def test_a_torch_that_cannot_be_imported_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "installed_build", lambda: Build("2.13.0", "13.0"))
    monkeypatch.setitem(sys.modules, "mistral_portable_torch.device", None)
    assert BACKEND.probe().reason.startswith("torch cannot be imported (")
    monkeypatch.setitem(sys.modules, "mistral_portable_torch.attention", None)
    with pytest.raises(BackendError, match=r"^torch cannot be imported \("):
        prepared()


def test_every_op_in_every_float_type() -> None:
    assert BACKEND.capabilities.ops == set(OPS)
    assert BACKEND.capabilities.dtypes == {dtype: (dtype,) for dtype in ("float32", "float16", "bfloat16")}


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "computes in float32, float16, bfloat16; choose one, or another backend"),
        ({"dtype": "int8"}, "choose one, or another backend"),
        ({"kv_cache": "q8_0"}, "keeps keys and values in float32, float16, bfloat16; choose one"),
        ({"device": "tpu"}, "device='tpu': choose cuda, cuda:0, cuda:1 and so on, mps or cpu"),
        ({"device": "cuda:x"}, "device='cuda:x': choose cuda"),
        ({"device": "cpu:1"}, "device='cpu:1': the last cpu device here is cpu:0; choose one up to it"),
        ({"attention": "frob"}, "attention='frob': choose one of flash_attn, varlen, sdpa, flex, eager"),
        ({"device": "cpu", "attention": "flash_attn"}, "attention='flash_attn': it needs a CUDA GPU, and this is cpu"),
        ({"device": "cpu", "attention": "flash_attention_2"}, "attention='flash_attn': it needs a CUDA GPU, and this"),
        ({"device": "cpu", "attention": "varlen"}, "choose another one, or leave the option out"),
    ],
)
def test_unsupported_options_are_refused_with_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        prepared(**({"device": "cpu"} | options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks a machine without a CUDA GPU")
def test_the_error_for_a_missing_gpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        BackendError, match=r"device='cuda:1': torch .* is built without CUDA: install another build: https://pytorch"
    ):
        mp.load("tiny", backend="torch", device="cuda:1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(BackendError, match="device='cuda': torch finds no CUDA GPU: check that nvidia-smi lists it"):
        find_device("cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="checks a machine without Metal")
def test_missing_metal_is_an_error() -> None:
    with pytest.raises(BackendError, match="device='mps': torch finds no Metal"):
        find_device("mps")


def test_an_older_gpu_has_no_bfloat16() -> None:
    assert TURING.dtypes == ("float32", "float16")
    assert "bfloat16" in HOPPER.dtypes


@pytest.mark.parametrize(
    ("wanted", "device", "dtype", "head_dim", "message"),
    [
        ("flash_attn", TURING, "float16", 128, r"it needs compute capability 8\.0 \(Ampere\), this GPU has 7\.5"),
        ("varlen", HOPPER, "float32", 128, "it computes in float16 or bfloat16, not in float32; choose another one"),
        ("varlen", HOPPER, "bfloat16", 20, "head_dim must be a multiple of 8 up to 256, and is 20"),
        ("flash_attn", HOPPER, "bfloat16", 512, "head_dim must be a multiple of 8 up to 256, and is 512"),
        ("flash_attn", HOPPER, "bfloat16", 128, "flash-attn is not installed: pip install --no-build-isolation"),
    ],
)
def test_the_error_for_a_kernel_that_cannot_run_says_why(
    wanted: str, device: Device, dtype: str, head_dim: int, message: str
) -> None:
    with pytest.raises(BackendError, match=f"attention='{wanted}': {message}"):
        choose(wanted, device, dtype, head_dim)


@pytest.mark.parametrize(
    ("found", "message"), [("2.5.9.post1", "flash-attn 2.5.9.post1 is too old, .*: pip install"), ("2.8.3", None)]
)
def test_the_error_names_a_flash_attn_that_is_too_old(
    found: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obstacles, "version", lambda package: found)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    # The newer version passes the check; then its import fails.
    with pytest.raises(BackendError, match=message or "its import fails .* rebuild it for this torch"):
        choose("flash_attn", HOPPER, "bfloat16", 128)


def test_the_error_names_a_torch_without_windows_in_varlen() -> None:
    assert "torch 2.12.1 is too old" in str(obstacles.obstacle("varlen", "cuda", (9, 0), "2.12.1"))


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "kernel"),
    [
        (HOPPER, "bfloat16", 128, "Varlen"),
        (HOPPER, "float32", 128, "SDPA"),
        (HOPPER, "bfloat16", 20, "SDPA"),
        (CPU, "bfloat16", 128, "SDPA"),
    ],
)
def test_the_best_kernel_is_the_default(device: Device, dtype: str, head_dim: int, kernel: str) -> None:
    assert type(choose(None, device, dtype, head_dim)).__name__ == kernel

"""Capabilities that the torch executor declares, and the errors for what it cannot do."""

import sys
from types import SimpleNamespace
from typing import Any

import flash_kernels
import numpy as np
import pytest
import torch
from mistral_portable_torch import BACKEND, backend, installed, obstacles
from mistral_portable_torch.attention import Planned, choose
from mistral_portable_torch.device import Device, find_device
from mistral_portable_torch.installed import Build
from mistral_portable_torch.reads import GroupReads
from torch_sessions import CONFIG, PagedBackend, Session, alone, text

import mistral_portable as mp
from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.errors import BackendError
from mistral_portable.graph import OPS, build
from mistral_portable.graph.passes import select_rows
from mistral_portable.reference import BACKEND as REFERENCE
from mistral_portable.testing import random_weights

HOPPER = Device(torch.device("cuda", 0), "H200", (9, 0))
TURING = Device(torch.device("cuda", 0), "T4", (7, 5))
CPU = find_device("cpu")


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide Triton, as in most CPU builds of torch; else its kernel would be compiled when it is chosen."""
    monkeypatch.setattr(obstacles, "find_spec", lambda name: None)


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
    assert "attention by sdpa, flex, eager; not triton: it needs a CUDA GPU" in found.reason


@pytest.mark.usefixtures("without_triton")
def test_on_a_gpu_it_scores_above_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    from mistral_portable_numba import BACKEND as NUMBA

    monkeypatch.setattr(backend, "installed_build", lambda: Build("2.13.0", "13.0"))
    monkeypatch.setattr("mistral_portable_torch.device.find_device", lambda: HOPPER)
    monkeypatch.setattr(Device, "total_memory", 141 * 10**9)
    found = BACKEND.probe()
    assert found.score > NUMBA.probe().score
    assert found.reason.startswith("CUDA, H200, 141 GB, torch 2.13.0: ")
    assert "attention by varlen, sdpa, flex, eager; not triton: Triton is not installed: pip install" in found.reason
    assert "not flash_attn: flash-attn is not installed: pip" in found.reason


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
        ({"attention": "frob"}, "attention='frob': choose one of triton, flash_attn, varlen, sdpa, flex, eager"),
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
        ("triton", HOPPER, "bfloat16", 128, "Triton is not installed: pip install triton; choose another one"),
        ("triton", TURING, "float16", 128, r"it needs compute capability 8\.0"),
    ],
)
@pytest.mark.usefixtures("without_triton")
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


def test_flash_attn_that_reads_lengths_back_decodes_by_its_other_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn 2.8.4's flash_attn_with_kvcache makes the host wait for the lengths, which no capture allows."""
    package = SimpleNamespace(**{name: getattr(flash_kernels, name) for name in flash_kernels.__all__})
    used = []

    def with_kvcache(*arguments: Any, **options: Any) -> Any:
        used.append(options["cache_seqlens"].max().item())
        return flash_kernels.flash_attn_with_kvcache(*arguments, **options)

    package.flash_attn_with_kvcache = with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    for found, calls in (
        ("2.8.3", True),
        ("2.8.3.post1", True),
        ("2.8.4", False),
        ("2.10.0", False),
        ("3.0.0b1", False),
    ):
        monkeypatch.setattr(obstacles, "version", lambda package, found=found: found)
        session = Session(backend=PagedBackend(page=8, kernel=choose("flash_attn", HOPPER, "bfloat16", 128)))
        lane, _ = session.begin(text(5))
        used.clear()
        # float32, of two ways through torch's BLAS
        np.testing.assert_allclose(session.feed(lane, [1]), alone(5), rtol=1e-5, atol=1e-5)
        assert bool(used) == calls


@pytest.mark.usefixtures("without_triton")
def test_a_torch_whose_flash_kernels_take_no_windows_has_no_varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op is asked for its arguments, not torch for its version."""
    assert obstacles.obstacle("varlen", "cuda", (9, 0)) is None
    schema = SimpleNamespace(arguments=[SimpleNamespace(name=name) for name in ("query", "key", "value", "scale")])
    op = SimpleNamespace(default=SimpleNamespace(_schema=schema))
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", op)
    assert "take no windows or no lengths: pip install" in str(obstacles.obstacle("varlen", "cuda", (9, 0)))
    assert type(choose(None, HOPPER, "bfloat16", 128)).__name__ == "SDPA"


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("tokens", [(1, 1), (5, 3)])
def test_torch_s_own_flash_op_takes_what_varlen_gives_it(window: int | None, tokens: tuple[int, int]) -> None:
    """The op itself, without a GPU: it checks arguments and tells the shapes of what it would return."""
    spec = CacheSpec.from_config(CONFIG.with_window(window), max_context=90, page_size=8, max_lanes=2)
    manager = CacheManager(spec)
    lanes = [manager.open(), manager.open()]
    for counts in ((33, 60), tokens):
        plan = manager.plan([Chunk(lane, [0] * count) for lane, count in zip(lanes, counts, strict=True)])
    attention = choose("varlen", HOPPER, "bfloat16", 64)
    planned = attention.plan(GroupReads(plan, spec, 0), recorded=False)
    arrays = {name: torch.from_numpy(array).to("meta") for name, array in planned.arrays.items()}
    made: dict[str, Any] = {"dtype": torch.bfloat16, "device": "meta"}
    q, pool = torch.empty(sum(tokens), 8, 64, **made), torch.empty(plan.groups[0].page_count, 8, 2, 64, **made)
    out = attention.attend(q, pool, pool, attention.prepare(Planned(planned.fixed, arrays)), 0.125)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)


@pytest.mark.usefixtures("without_triton")
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

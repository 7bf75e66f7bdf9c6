"""Decoding by our own kernel: when it is chosen, and the kernel itself where Triton is installed."""

import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flash_kernels import paged_attend
from hypothesis import given
from hypothesis import strategies as st
from mistral_portable_torch import obstacles
from mistral_portable_torch.attempt import Attempt
from mistral_portable_torch.attention import choice, choose
from mistral_portable_torch.attention.paged import Paged, splits_of
from mistral_portable_torch.device import Device
from triton_process import needs_triton, run_checks

from mistral_portable.errors import BackendError


@needs_triton
def test_the_kernel_gives_softmax_attention() -> None:
    run_checks("paged_attention.py")


@given(st.integers(1, 200), st.integers(1, 16), st.integers(1, 1 << 17))
def test_splits_are_a_power_of_two_of_which_each_has_its_share(sequences: int, groups: int, slots: int) -> None:
    splits = splits_of(sequences, groups, slots)
    assert splits & (splits - 1) == 0
    assert splits == 1 or slots / splits > 32  # at most a power of two more than parts of 64
    assert slots / splits <= 1024
    assert splits_of(sequences, groups, slots + 1) >= splits  # so that the longest row of a step counts


def test_splits_docstring_example() -> None:
    assert (splits_of(1, 8, 4096), splits_of(32, 8, 4096)) == (32, 4)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU with Triton, by stand-ins. calls: those of the kernel. error: what the kernel raises, if anything."""
    made = SimpleNamespace(device=Device(torch.device("cpu"), "H200", (9, 0)), calls=[], error=None)

    def attend(*arguments: Any) -> torch.Tensor:
        made.calls.append(arguments)
        if made.error is not None:
            raise made.error
        return paged_attend(*arguments)

    module = SimpleNamespace(attend=attend)
    monkeypatch.setattr(Device, "kind", "cuda")
    monkeypatch.setattr(obstacles, "find_spec", lambda name: "found")
    monkeypatch.setitem(sys.modules, "mistral_portable_torch.attention.paged_kernels", module)
    monkeypatch.setattr("mistral_portable_torch.attention.paged_kernels", module, raising=False)
    monkeypatch.setattr(choice, "_DECODING", Attempt("Decoding steps are slow"))
    return made


@pytest.mark.parametrize("wanted", [None, "triton"])
def test_it_is_compiled_when_it_is_chosen(wanted: str | None, card: SimpleNamespace) -> None:
    assert isinstance(choose(wanted, card.device, "bfloat16", 128), Paged)
    assert [splits for *_, splits in card.calls] == [1, 2]


def test_another_kernel_that_is_asked_for_takes_all_steps(card: SimpleNamespace) -> None:
    assert type(choose("sdpa", card.device, "bfloat16", 128)).__name__ == "SDPA"
    assert type(choose(None, card.device, "float32", 128)).__name__ == "SDPA"
    assert not card.calls


def test_where_it_cannot_be_compiled_decoding_takes_the_kernel_for_prompts(card: SimpleNamespace) -> None:
    card.error = RuntimeError("Failed to find C compiler. Please specify via CC environment variable")
    with pytest.warns(UserWarning, match=r"Decoding steps are slow, because kernels cannot be compiled here \(Failed"):
        assert type(choose(None, card.device, "bfloat16", 128)).__name__ == "Varlen"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(None, card.device, "bfloat16", 128)
    with pytest.raises(BackendError, match=r"^attention='triton': kernels cannot .* or choose another kernel"):
        choose("triton", card.device, "bfloat16", 128)


@pytest.mark.parametrize("wanted", [None, "triton"])
def test_errors_of_another_kind_are_raised(wanted: str | None, card: SimpleNamespace) -> None:
    card.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        choose(wanted, card.device, "bfloat16", 128)

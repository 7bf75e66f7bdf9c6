"""The choice between torch's kernel and ours for products of few tokens, by stand-ins for both and for the clock."""

import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mistral_portable_torch import faster, program
from mistral_portable_torch.attempt import Attempt
from mistral_portable_torch.attention.sdpa import SDPA
from mistral_portable_torch.capture import Record
from mistral_portable_torch.device import Device
from mistral_portable_torch.elementwise import Plain
from mistral_portable_torch.faster import choose
from mistral_portable_torch.matrices import Dense
from mistral_portable_torch.processes import Group
from torch_sessions import CONFIG, PagedBackend, Repeated, Session, text
from triton_process import needs_triton, run_checks

BFLOAT16 = torch.bfloat16


@needs_triton
def test_our_kernel_gives_the_products() -> None:
    run_checks("float_kernels.py")


class GPU:
    """A GPU on which torch's products take a second each, and ours as many as `ours` says, by tokens."""

    def __init__(self) -> None:
        self.ours = {1: 0.5, 2: 0.9, 3: 0.97, 4: 1.5}
        self.calls: list[tuple[str, int]] = []
        self.runs = 0
        self.error: Exception | None = None

    def multiply(self, x: torch.Tensor, weight: torch.Tensor, gated: bool = False) -> torch.Tensor:
        """Our kernel."""
        if self.error is not None:
            raise self.error
        self.calls.append(("ours", len(x)))
        return Plain().silu_mul(*(x @ weight.T).chunk(2, dim=1)) if gated else x @ weight.T

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """torch's."""
        self.calls.append(("torch", len(x)))
        return x @ weight.T

    def clock(self, run: Callable[[], object]) -> float:
        self.runs += 1
        self.calls.clear()
        run()
        return sum(self.ours[tokens] if name == "ours" else 1.0 for name, tokens in self.calls)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> GPU:
    made = GPU()
    module = SimpleNamespace(multiply=made.multiply)
    monkeypatch.setitem(sys.modules, "mistral_portable_torch.float_gemv", module)
    monkeypatch.setattr("mistral_portable_torch.float_gemv", module, raising=False)
    monkeypatch.setattr(faster, "linear", made.linear)
    monkeypatch.setattr(faster, "_COMPILED", Attempt("products of 1 to 4 tokens are torch's"))
    monkeypatch.setattr(faster, "_CHOSEN", {})
    return made


def matrices(*shapes: tuple[int, int], dtype: torch.dtype = BFLOAT16) -> list[Dense]:
    return [Dense(torch.randn(shape).to(dtype)) for shape in shapes]


def test_the_faster_kernel_multiplies_and_the_log_says_which(gpu: GPU, caplog: pytest.LogCaptureFixture) -> None:
    """One that is faster by 3 percent is not: the next process might find it slower."""
    some = matrices((6, 8), (6, 8), (5, 8))
    with caplog.at_level(logging.INFO, "mistral_portable.torch"):
        choose(some, None, None, gpu.clock)
    assert [set(matrix.ours) for matrix in some] == [{1, 2}] * 3
    assert caplog.messages == [
        f"kernels for {rows} x 8 matrices, by tokens: 1: ours (500000.0 us, torch's 1000000.0); "
        "2: ours (900000.0 us, torch's 1000000.0); 3: torch's (970000.0 us, torch's 1000000.0); "
        "4: torch's (1500000.0 us, torch's 1000000.0)"
        for rows in (6, 5)
    ]


@pytest.mark.parametrize("bias", [None, torch.arange(6.0).to(BFLOAT16)])
def test_products_are_right_by_either_kernel(bias: torch.Tensor | None, gpu: GPU) -> None:
    (matrix,) = matrices((6, 8))
    choose([matrix], None, None, gpu.clock)
    gpu.calls.clear()
    for tokens in range(1, 9):
        x = torch.randn(tokens, 8).to(BFLOAT16)
        expected = x.float() @ matrix.weight.float().T + (0 if bias is None else bias.float())
        # Two roundings to 8 bits, of the product and of its sum with the bias.
        torch.testing.assert_close(matrix.multiply(x, bias).float(), expected, rtol=2**-6, atol=2**-6)
    assert gpu.calls == [("ours", 1), ("ours", 2)]


def test_each_shape_and_type_is_timed_once_in_a_process(gpu: GPU) -> None:
    choose(matrices((6, 8), (5, 8)), None, None, gpu.clock)
    before = gpu.runs
    gpu.ours = dict.fromkeys(gpu.ours, 2.0)
    later = matrices((5, 8), (6, 8))
    choose(later, None, None, gpu.clock)
    assert gpu.runs == before
    assert [set(matrix.ours) for matrix in later] == [{1, 2}] * 2
    (other,) = matrices((6, 8), dtype=torch.float16)
    choose([other], None, None, gpu.clock)
    assert gpu.runs > before
    assert set(other.ours) == set()


def test_float32_is_left_to_torch(gpu: GPU) -> None:
    (matrix,) = matrices((6, 8), dtype=torch.float32)
    choose([matrix], None, None, gpu.clock)
    assert gpu.runs == 0
    assert not matrix.ours


def test_where_steps_are_recorded_recordings_are_timed(gpu: GPU) -> None:
    record = Repeated()
    choose(matrices((6, 8)), record, None, gpu.clock)
    assert record.records == 2 * 4  # of each kernel and number of tokens one
    assert record.replays == gpu.runs > 0


@pytest.mark.parametrize("error", [RuntimeError("not permitted when stream is capturing"), torch.OutOfMemoryError()])
def test_where_one_of_them_cannot_be_timed_products_are_torch_s(error: Exception, gpu: GPU) -> None:
    """One recorded and the other not would be no comparison."""
    recorded = Repeated()

    def broken(function: Callable[[], Any]) -> Any:
        if recorded.records:
            raise error
        return recorded(function)

    (matrix,) = matrices((6, 8))
    with pytest.warns(UserWarning, match="are torch's, as no others could be timed"):
        choose([matrix], broken, None, gpu.clock)
    assert not matrix.ours


def test_a_model_of_other_layers_is_timed_for_itself(gpu: GPU) -> None:
    """Few matrices may lie in the GPU's cache."""
    choose(matrices((6, 8)), None, None, gpu.clock)
    before = gpu.runs
    choose(matrices((6, 8), (6, 8)), None, None, gpu.clock)
    assert gpu.runs > before


def test_a_kernel_that_cannot_be_compiled_leaves_torchs(gpu: GPU) -> None:
    gpu.error = RuntimeError("Failed to find C compiler. Please specify via CC environment variable")
    some = matrices((6, 8), (5, 8))
    with pytest.warns(
        UserWarning, match=r"products of 1 to 4 tokens are torch's, because kernels cannot .*C comp"
    ) as told:
        choose(some, None, None, gpu.clock)
    assert len(told) == 1
    assert not any(matrix.ours for matrix in some)


@dataclass(frozen=True)
class Beside(Group):
    """A process beside one that has found our kernel faster (1), or not (0), for each number of tokens."""

    others: list[int] = field(default_factory=list)

    def least(self, number: int) -> int:
        return min(number, self.others.pop(0))


@pytest.mark.parametrize("compiles", [True, False])
def test_processes_that_share_a_model_choose_what_each_has_found_faster(compiles: bool, gpu: GPU) -> None:
    (matrix,), beside = matrices((6, 8)), Beside(0, 2, None, [1, 0, 1, 0])
    if compiles:
        choose([matrix], None, beside, gpu.clock)
    else:
        gpu.error = ImportError("libtriton.so: undefined symbol")
        with pytest.warns(UserWarning, match="undefined symbol"):
            choose([matrix], None, beside, gpu.clock)
    assert set(matrix.ours) == ({1} if compiles else set())
    assert not beside.others  # each process asks as often, or others wait for ever


def test_a_program_on_cuda_has_its_linears_chosen(gpu: GPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are joined are one, and the LM head is one of them; the embedding table is not."""

    def written(session: Session) -> Any:
        lane, logits = session.begin(text(3))
        return np.concatenate([logits, *(session.feed(lane, [token]) for token in text(3))])

    expected = written(Session(dtype="bfloat16"))
    given: list[Dense] = []

    def chosen(some: Iterable[Dense], record: Record | None, group: Group | None) -> None:
        assert record is not None
        given.extend(some)
        choose(given, record, group, gpu.clock)

    monkeypatch.setattr(program, "choose", chosen)
    monkeypatch.setattr(Device, "kind", "cuda")
    monkeypatch.setattr(program, "elementwise", lambda kind: Plain())
    session = Session(backend=PagedBackend(kernel=SDPA(), record=Repeated(), memory=10**8), dtype="bfloat16")
    assert len(given) == 4 * CONFIG.num_hidden_layers + 1
    gpu.calls.clear()
    # The stand-in adds up products of bfloat16 in another order than torch's product with a bias.
    np.testing.assert_allclose(written(session), expected, rtol=0.05, atol=0.05)
    assert gpu.calls.count(("ours", 1)) >= 3 * len(given)

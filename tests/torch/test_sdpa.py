"""torch's own attention: how often it is called, with what, and that its choice of kernels is put back."""

from typing import Any

import pytest
import torch
from mistral_portable_torch.attention.sdpa import SDPA
from torch_sessions import CONFIG, PagedBackend, Repeated, Session, text

from mistral_portable.cache import Chunk

NAME = "mistral_portable_torch.attention.sdpa.scaled_dot_product_attention"
attention = torch.nn.functional.scaled_dot_product_attention


@pytest.mark.parametrize("sequences", [1, 3])
def test_a_step_that_may_be_recorded_takes_all_sequences_at_once(
    sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(backend=PagedBackend(record=Repeated()))
    lanes = [session.begin(text(7 + lane, lane))[0] for lane in range(sequences)]
    plan = session.manager.plan([Chunk(lane, [1], [0]) for lane in lanes])
    calls = []

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(options)
        return attention(*arguments, **options)

    monkeypatch.setattr(NAME, counted)
    session.program.step(plan)
    assert len(calls) == CONFIG.num_hidden_layers


def test_no_kernel_needs_to_know_grouped_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's kernels for masks do not: torch would take its plain one, in float32, with the keys repeated."""
    seen = []

    def checked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append((q.shape[1], k.shape[1], v.shape[1]))
        assert not options.get("enable_gqa")
        return attention(q, k, v, **options)

    monkeypatch.setattr(NAME, checked)
    for record in (None, Repeated()):
        session = Session(backend=PagedBackend(record=record))
        lane, _ = session.begin(text(9))
        session.feed(lane, [1])
    assert set(seen) == {(2, 2, 2)}


def test_cudnn_is_left_out_on_a_gpu_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes a plan for each new shape."""
    allowed = []

    def asked(*arguments: Any, **options: Any) -> torch.Tensor:
        allowed.append(enabled())
        return attention(*arguments, **options)

    enabled: Any = torch.backends.cuda.cudnn_sdp_enabled
    before = enabled()
    monkeypatch.setattr(NAME, asked)
    for kernel in (SDPA(cuda=True), SDPA()):
        Session(backend=PagedBackend(kernel=kernel)).begin(text(9))
        assert enabled() == before
    layers = CONFIG.num_hidden_layers
    assert allowed == [False] * layers + [before] * layers

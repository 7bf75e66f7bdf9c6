"""Steps of the torch executor: outputs, hidden states, threads, forks of the process, and a story."""

import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mistral_portable_torch import BACKEND
from torch_sessions import CONFIG, PagedBackend, Repeated, Session, text

import mistral_portable as mp
from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.cache import CacheSpec, Chunk
from mistral_portable.errors import CapacityError, ClosedError
from mistral_portable.graph import build
from mistral_portable.graph.passes import expose_attention_weights, expose_hidden_states, select_rows
from mistral_portable.testing import Case, Feed, Scenario, check, random_weights


def test_outputs_are_the_callers_own() -> None:
    session, other = Session(backend=PagedBackend(record=Repeated())), Session()
    lane, first = session.begin(text(7))
    kept = first.copy()
    first.fill(np.nan)
    for token in text(6, 1):
        session.feed(lane, [token]).fill(np.nan)
    other.begin([*text(7), *text(6, 1)])
    np.testing.assert_allclose(session.feed(lane, [1]), other.feed(0, [1]), rtol=1e-5, atol=1e-5)
    assert np.isfinite(kept).all()


def test_a_prefill_chunk_without_requested_rows_is_cached() -> None:
    session, other = Session(), Session()
    lane = session.manager.open()
    out = session.program.step(session.manager.plan([Chunk(lane, text(40))]))
    assert out["logits"].shape == (0, CONFIG.vocab_size)
    expected = other.feed(other.begin(text(40))[0], text(4, 1))
    np.testing.assert_array_equal(session.feed(lane, text(4, 1)), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hidden_states_and_attention_weights_after_pages_have_left_the_window(attention: str) -> None:
    config = CONFIG.with_window((5, None))
    graph = expose_attention_weights(expose_hidden_states(build(config)))
    tokens = tuple(text(40))
    scenario = Scenario(
        (
            (Feed(0, tokens[:9], 9), Feed(1, tokens[5:7], 2)),
            (Feed(1, tokens[7:20], 13),),
            *((Feed(0, (token,), 1),) for token in tokens[9:30]),
        )
    )
    case = Case("all", config, graph, random_weights(graph, 0), scenario)
    result = check(case, PagedBackend(record=Repeated()), ExecutorOptions(dtype="float32", attention=attention))
    assert result.status == "pass", result


def test_steps_from_several_threads_take_turns() -> None:
    session, alone = Session(), Session()
    lanes = [session.manager.open() for _ in range(4)]
    plans = [session.manager.plan([Chunk(lane, text(20, lane), [19])]) for lane in lanes]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda lane=lane: found.update({lane: session.program.step(plans[lane])["logits"]}))
        for lane in lanes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lane in lanes:
        np.testing.assert_allclose(found[lane][0], alone.begin(text(20, lane))[1][-1], rtol=1e-5, atol=1e-5)


def test_steps_of_a_closed_program_are_an_error() -> None:
    session = Session()
    plan = session.manager.plan([Chunk(session.manager.open(), [1, 2], [1])])
    session.program.step(plan)
    assert session.program.cache_bytes > 0
    session.program.close()
    session.program.close()
    assert session.program.cache_bytes == 0
    with pytest.raises(ClosedError, match="closed: prepare it again"):
        session.program.step(plan)


@pytest.mark.parametrize("quantize", [None, "q4_0"])
def test_tiny_writes_the_reference_s_story(quantize: str | None) -> None:
    found, expected = (
        mp.load("tiny", backend=name, dtype="float32", quantize=quantize).generate(
            "Once upon a time", max_tokens=200, temperature=0
        )
        for name in ("torch", "reference")
    )
    assert len(expected.tokens) > 2 * 64  # two windows
    assert found.tokens == expected.tokens


def test_threads_are_set_and_restored() -> None:
    before, seen = torch.get_num_threads(), list[int]()
    program = prepare(
        BACKEND,
        select_rows(build(CONFIG), "logits"),
        random_weights(build(CONFIG), 0),
        CacheSpec.from_config(CONFIG, max_context=64, page_size=256),
        ExecutorOptions(threads=before + 1, progress=lambda *_: seen.append(torch.get_num_threads())),
    )
    program.close()
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_a_forked_child_gets_an_error() -> None:
    """The child has none of torch's threads, so a step would hang. The parent continues."""
    script = """
import os
import mistral_portable as mp
from mistral_portable.errors import BackendError
model = mp.load("tiny", backend="torch", device="cpu")
before = model.generate("Once", max_tokens=3, temperature=0).tokens
child = os.fork()
if child == 0:
    for call in (lambda: model.generate("Once", max_tokens=3), lambda: mp.load("tiny", backend="torch", device="cpu")):
        try:
            call()
        except BackendError as error:
            print(error, flush=True)
    model.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert model.generate("Once", max_tokens=3, temperature=0).tokens == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "torch was started in process" in first
    assert first == second


def test_no_memory_for_a_later_group_of_layers_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first group's pools have grown: the lane is unchanged, continues, and can be forked."""
    config = replace(CONFIG, sliding_window=(None, 40))
    session, calm = (Session(config, PagedBackend(page=4), max_chunk=8) for _ in range(2))
    lane, _ = session.begin(text(12))
    new_zeros, calls = torch.Tensor.new_zeros, 0

    def scarce(tensor: torch.Tensor, *size: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:  # the first group has grown its keys and values
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return new_zeros(tensor, *size, **options)

    plan = session.manager.plan([Chunk(lane, text(8, 1))])
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_zeros", scarce)
        with pytest.raises(CapacityError, match="does not fit"):
            session.program.step(plan)
    session.manager.undo(plan)
    copied = session.manager.fork(lane)
    expected = calm.feed(calm.begin(text(12))[0], text(20, 2))
    for each in (lane, copied):
        np.testing.assert_array_equal(session.feed(each, text(20, 2)), expected)

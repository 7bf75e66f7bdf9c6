"""Lockstep: other processes make the calls of the first one, whatever becomes of it. Threads stand for processes."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_torch import program
from mistral_portable_torch.lockstep import LeadingAsynchronousProgram
from mistral_portable_torch.transfer import HostCopy
from program_sessions import ProgramSession
from torch_processes import Member, ParallelBackend
from torch_sessions import CONFIG, Session, text

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.cache import Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BackendError, CacheError, CapacityError, ClosedError, InputError
from mistral_portable.graph import build
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing import Case, check, random_weights
from mistral_portable.testing.corpus import DRIVES
from mistral_portable.testing.greedy import greedy_tokens
from mistral_portable.testing.strategies import scenarios

RTOL, ATOL = 1e-4, 1e-5  # of two processes, the sums of each half are added up, in float32


class Shared(ProgramSession[LeadingAsynchronousProgram]):
    """A program of two threads."""

    def __init__(self, config: MistralConfig = CONFIG, **options: Any) -> None:
        self.backend = ParallelBackend(**options)
        super().__init__(self.backend, config, None, page_size=self.backend.page)

    def end(self) -> Any:
        """Wait for the other thread; return its exit status, or the error that it raised."""
        self.backend.threads[0].join(60)
        return self.backend.ends[0]


def summing(act: Callable[[int], None]) -> tuple[Any, threading.Event]:
    """A class of Members that call `act` with their rank amid the first sum after the event is set."""
    armed = threading.Event()

    @dataclass(frozen=True)
    class Acting(Member):
        acted: list[int] = field(default_factory=list)

        def sum(self, x: torch.Tensor) -> torch.Tensor:
            if armed.is_set() and not self.acted:
                self.acted.append(1)
                act(self.rank)
            return super().sum(x)

    return Acting, armed


@pytest.mark.parametrize("drive", DRIVES)
@settings(max_examples=4)  # a scenario has dozens of steps
@given(data=st.data(), window=st.integers(1, 8))
def test_the_contract_of_a_program_holds(drive: str, data: st.DataObject, window: int) -> None:
    config = CONFIG.with_window(window)
    graph = select_rows(build(config), "logits")
    scenario = data.draw(scenarios(config.vocab_size, sequences=2, rollback=True, rows=True, swap=drive != "threads"))
    case = Case("shared", config, graph, random_weights(graph, 0), scenario)
    result = check(case, ParallelBackend(), ExecutorOptions(dtype="float32"), drive=DRIVES[drive])
    assert result.status == "pass", result


@settings(max_examples=4)  # 18 steps each
@given(data=st.data())
def test_tokens_that_stay_on_the_device(data: st.DataObject) -> None:
    graph = select_rows(build(CONFIG), "logits")
    scenario = data.draw(scenarios(CONFIG.vocab_size, sequences=2))
    case = Case("shared", CONFIG, graph, random_weights(graph, 0), scenario)
    by_device, by_host = greedy_tokens(case, ParallelBackend(), ExecutorOptions(dtype="float32"), count=18)
    assert by_device == by_host


def test_a_step_follows_the_newest_one_alone() -> None:
    session = Shared()
    lanes = [session.begin(text(5))[0] for _ in range(2)]
    older, newest = (session.program.submit(session.manager.plan([Chunk(lane, [1], range(1))])) for lane in lanes)
    plan = session.manager.plan([Chunk(lanes[0], [0], range(1), None, 0)])
    with pytest.raises(InputError, match="the step that was submitted last"):
        session.program.submit(plan, after=older)
    with pytest.raises(InputError, match="after is a str: give a step that this program has begun"):
        session.program.submit(plan, after=cast(Any, "older"))
    assert session.program.submit(plan, after=newest).tokens().shape == (1,)


def test_logits_are_copied_from_the_device_in_the_first_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[threading.Thread] = []

    class Counted(HostCopy):
        def __init__(self, tensor: torch.Tensor) -> None:
            copied.append(threading.current_thread())
            super().__init__(tensor)

    monkeypatch.setattr(program, "HostCopy", Counted)
    session = Shared()
    lane = session.begin(text(5))[0]
    session.feed(lane, [1])
    assert len(copied) == 2
    assert session.backend.threads[0] not in copied


def test_saved_lanes_are_those_of_one_process() -> None:
    """A lane that several processes save goes on in one, and the other way round."""
    several, one = Shared(), Session()
    lane = several.begin(text(30))[0]
    by_several, by_one = several.save(lane), one.save(one.begin(text(30))[0])
    expected = several.feed(lane, text(9, 1))
    for session, saved in ((one, by_several), (several, by_one)):
        np.testing.assert_allclose(session.feed(session.load(saved), text(9, 1)), expected, rtol=RTOL, atol=ATOL)


def test_a_saved_lane_that_is_another_models_is_refused() -> None:
    session = Shared()
    lane = session.begin(text(5))[0]
    saved = session.save(lane)
    for broken in (np.s_[:, :, :1], np.s_[0], np.s_[:, :1]):
        state = {name: array[broken] for name, array in saved.groups[0].items()}
        with pytest.raises(CacheError, match="the saved lane does not fit this model"):
            session.program.write_pages(0, [0], state)
    assert np.isfinite(session.feed(lane, text(5, 1))).all()


def test_close_ends_all() -> None:
    session = Shared()
    session.begin(text(5))
    session.program.close()
    assert session.end() == 0
    with pytest.raises(ClosedError, match="the program is closed: prepare it again"):
        session.begin(text(5))


def test_the_first_one_ends_without_closing() -> None:
    session = Shared()
    session.begin(text(5))
    session.backend.networks[0].end(0)
    assert session.end() == 0


def test_memory_is_that_of_the_one_with_least() -> None:
    """A step that does not fit in one of them is refused in all, before any has begun; others go on."""
    config = CONFIG.with_window(None)
    # A part has 134 kB of weights, and needs 110 kB for the first 48 tokens.
    session, other = Shared(config, memory=(10**9, 300_000)), Session(config)
    lane, found = session.begin(text(20))
    with pytest.raises(CapacityError, match="a step does not fit"):
        session.begin(text(300))
    session.manager.close(1)
    expected = other.begin(text(20))[1]
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(session.feed(lane, text(9, 1)), other.feed(0, text(9, 1)), rtol=RTOL, atol=ATOL)
    session.program.close()
    assert session.end() == 0


@pytest.mark.parametrize("loser", [0, 1])
def test_one_that_fails_amid_a_step_ends_all(loser: int) -> None:
    def fail(rank: int) -> None:
        if rank == loser:
            raise RuntimeError("the device fell over")

    member, armed = summing(fail)
    session = Shared(member=member)
    lane = session.begin(text(5))[0]
    armed.set()
    with pytest.raises(Exception, match=("the device fell over", "one has ended")[loser]):
        session.feed(lane, [1])
    for _ in range(2):
        with pytest.raises(ClosedError, match=r"the program is lost .*: start all processes again"):
            session.feed(lane, [1])
    assert str(session.end()) == ("1", "the device fell over")[loser]
    session.program.close()


@pytest.fixture
def interrupted() -> Iterator[threading.Event]:
    """Set when Ctrl-C has come in the main thread; another one has no effect then."""
    event = threading.Event()

    def handle(*_: Any) -> None:
        if not event.is_set():
            event.set()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    yield event
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_amid_a_step_ends_the_waiting_alone(interrupted: threading.Event) -> None:
    """It comes in the main thread; processes that are amid a step do not part."""

    def interrupt(rank: int) -> None:
        while rank == 0 and not interrupted.wait(0.05):  # one may come just before the main thread falls asleep
            signal.pthread_kill(cast(int, threading.main_thread().ident), signal.SIGINT)

    member, armed = summing(interrupt)
    session, other = Shared(member=member), Session()
    lane = session.begin(text(7))[0]
    armed.set()
    with pytest.raises(KeyboardInterrupt):
        session.feed(lane, [1])
    expected = other.feed(other.begin(text(7))[0], [2, 3])
    np.testing.assert_allclose(session.feed(lane, [2, 3]), expected, rtol=RTOL, atol=ATOL)
    session.program.close()
    assert session.end() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_does_not_speak_for_its_parent() -> None:
    session = Shared()
    lane = session.begin(text(5))[0]
    child = os.fork()
    if not child:  # pragma: no cover; coverage of a child is not collected
        try:
            session.program.close()
            session.feed(lane, [1])
        except BackendError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert np.isfinite(session.feed(lane, [1])).all()

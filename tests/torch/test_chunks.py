"""Prompts in longer chunks than those of the spec, as on CUDA: right, and in no more memory than short ones need."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import mistral_portable_torch.program as torch_executor
import numpy as np
import pytest
from flash_kernels import flash_forward, paged_attend
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_torch.attention import Attention
from mistral_portable_torch.attention.paged import Paged
from mistral_portable_torch.attention.sdpa import SDPA
from mistral_portable_torch.attention.varlen import Varlen
from program_sessions import ProgramSession
from torch_memory import least_memory
from torch_processes import ParallelBackend
from torch_sessions import CONFIG, PagedBackend, Repeated, Session, text

import mistral_portable as mp
from mistral_portable.boundary import ExecutorOptions, Program, prepare
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import Window
from mistral_portable.engine import steps
from mistral_portable.engine.chunks import spec_of_plans
from mistral_portable.engine.core import Core
from mistral_portable.engine.loop import Loop
from mistral_portable.engine.request import Scoring
from mistral_portable.errors import CapacityError
from mistral_portable.graph import build
from mistral_portable.graph.passes import select_rows
from mistral_portable.reference import BACKEND as REFERENCE
from mistral_portable.testing import random_weights
from mistral_portable.transformers import MistralForCausalLM

PROMPT = [int(token) for token in np.random.default_rng(0).integers(5, 1000, 1300)]
GREEDY: dict[str, Any] = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
KERNELS: dict[str, Attention | None] = {
    "sdpa": None,
    "varlen": Varlen(flash_forward),
    "triton": Paged(paged_attend, SDPA()),
}


class Longer(torch_executor.DrawingTorchProgram):
    """A program on the CPU that wants chunks of 1,024 tokens."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"chunk": 1024})


class Sizes(list[int]):
    """The tokens of each step that a manager plans; steps of more than `most` find no memory."""

    def __init__(self, manager: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 10**6
        plan = manager.plan

        def sized(chunks: Sequence[Chunk]) -> Any:
            self.append(sum(len(chunk.tokens) for chunk in chunks))
            if self[-1] > self.most:
                raise CapacityError("no memory for so many tokens")
            return plan(chunks)

        monkeypatch.setattr(manager, "plan", sized)

    def taken(self) -> list[int]:
        """Those of all steps since the last call."""
        found = list(self)
        self.clear()
        return found


@pytest.fixture(scope="module")
def expected() -> tuple[int, ...]:
    """The answer by steps of 512 tokens."""
    with mp.load("tiny", backend="torch", dtype="float32") as model:
        answer: mp.Generation = model.generate(PROMPT, **GREEDY)
        return answer.tokens


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[mp.Model]:
    monkeypatch.setattr(torch_executor, "TorchProgram", Longer)
    with mp.load("tiny", backend="torch", dtype="float32") as model:
        yield model


def test_prompts_are_read_in_the_chunks_that_the_program_wants(
    model: mp.Model, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = Sizes(model.manager, monkeypatch)
    assert model.generate(PROMPT, **GREEDY).tokens == expected
    assert sizes.taken() == [1024, 276, 1, 1, 1]
    model.logits(PROMPT)  # of all rows: their logits would take much memory
    assert sizes.taken() == [512, 512, 276]


def test_a_step_without_memory_is_tried_again_with_512_tokens(
    model: mp.Model, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a text ends: then there may be memory again."""
    sizes = Sizes(model.manager, monkeypatch)
    sizes.most = 600
    assert model.generate(PROMPT, **GREEDY).tokens == expected
    assert sizes.taken() == [1024, 512, 512, 276, 1, 1, 1]
    sizes.most = 10**6
    assert model.generate(PROMPT[::-1], **GREEDY).tokens
    assert sizes.taken() == [1024, 276, 1, 1, 1]


def test_the_documented_model_generates_so_and_keeps_to_512_tokens_where_all_is_returned(
    expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_executor, "TorchProgram", Longer)
    model = MistralForCausalLM.from_pretrained("tiny", backend="torch", dtype="float32")
    sizes = Sizes(model.decoder.manager, monkeypatch)
    found = model.generate(np.array([PROMPT]), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert tuple(found[0][-4:].tolist()) == expected
    assert sizes.taken() == [1024, 276, 1, 1, 1]
    model(np.array([PROMPT]))
    assert sizes.taken() == [512, 512, 276]


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=15)  # each prepares two programs
@given(
    window=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, None]),
    page=st.sampled_from([1, 3, 16]),
    chunk=st.integers(5, 50),
    length=st.integers(1, 60),
)
def test_chunks_longer_than_the_window_are_right(
    kernel: str, window: Window, page: int, chunk: int, length: int
) -> None:
    """Prompts before and beside a text that decodes, and its going on, against the reference in float64."""
    config = CONFIG.with_window(window)
    backend = PagedBackend(page=page, kernel=KERNELS[kernel], record=Repeated(), chunk=chunk)
    session = Session(config, backend, max_chunk=4)
    exact: ProgramSession[Any] = ProgramSession(REFERENCE, config, None, page_size=4, dtype="float64")
    session.spec = spec_of_plans(session.spec, session.program)
    session.manager = CacheManager(session.spec)
    assert session.spec.max_chunk == chunk
    close(session.begin(text(length))[1], exact.begin(text(length))[1])
    session.manager.open()
    exact.manager.open()
    both = [Chunk(0, [1], [0]), Chunk(1, text(chunk, 1)[:48], range(min(chunk, 48)))]
    close(session.step(both), exact.step(both))
    close(session.feed(1, text(length, 2)), exact.feed(1, text(length, 2)))
    for token in text(5, 3):
        close(session.together([0, 1], token), exact.together([0, 1], token))


def close(found: Any, wanted: Any) -> None:
    # Sums of up to 96 products in float32, twice through a layer.
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("attention", "window"), [("eager", None), ("sdpa", 5)])
def test_no_more_memory_is_needed_than_with_short_chunks(
    attention: str, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the longer ones do not fit: beside the weights, or deep in a text."""
    monkeypatch.setattr(steps, "CHUNK", 8)

    def read(memory: int, chunk: int | None) -> int:
        session = Session(
            CONFIG.with_window(window), PagedBackend(memory=memory, chunk=chunk), max_chunk=8, attention=attention
        )
        manager = CacheManager(spec_of_plans(session.spec, session.program))
        loop, scoring = Loop(Core(session.program, manager), lanes=1, drafting=None), Scoring(text(150), first=149)
        with closing(loop.run([scoring])) as made:
            for _ in made:
                scoring.next()
        return session.program.prompt_chunk

    least = least_memory(lambda memory: read(memory, None), 10**7)
    for memory in range(least, 2 * least, least // 4):
        read(memory, 64)  # is refused nowhere
    assert read(10**7, 64) == 64
    with pytest.raises(CapacityError):
        read(least - 1, 64)


def test_a_program_wants_long_chunks_if_they_fit_beside_the_weights() -> None:
    def wanted(memory: int | None, chunk: int | None) -> int:
        return Session(backend=PagedBackend(memory=memory, chunk=chunk), max_chunk=8).program.prompt_chunk

    assert wanted(None, 40) == 40
    assert wanted(None, None) == 8
    least = least_memory(lambda memory: wanted(memory, None), 10**7)
    assert wanted(least, 40) == 8
    with pytest.raises(CapacityError, match="keys and values of 8 tokens"):
        wanted(least - 1, 40)


def test_processes_that_share_a_model_want_the_same() -> None:
    """They go by the one that has least memory."""
    graph, weights = select_rows(build(CONFIG), "logits"), random_weights(build(CONFIG), 0)
    spec = CacheSpec.from_config(CONFIG, max_context=64, page_size=3, max_chunk=8)

    def made(memory: Sequence[int | None]) -> Program:
        backend = ParallelBackend(memory=memory, chunk=40)
        return prepare(backend, graph, weights, spec, ExecutorOptions(dtype="float32"))

    def wanted(memory: Sequence[int | None]) -> int:
        program = made(memory)
        program.close()
        return spec_of_plans(spec, program).max_chunk

    assert wanted([None, None]) == 40
    least = least_memory(lambda memory: wanted([None, memory]), 10**7)
    assert wanted([None, least]) == wanted([least, None]) == 8

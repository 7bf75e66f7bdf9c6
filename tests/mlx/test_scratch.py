"""Memory of a step is known before it begins: MLX counts no more, and not much less."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_mlx.memory import Memory
from mlx_sessions import CONFIG, Session, in_use, text

from mistral_portable.cache import Chunk
from mistral_portable.config import Window
from mistral_portable.graph import Graph, build
from mistral_portable.graph.passes import expose_attention_weights, expose_hidden_states

pytestmark = pytest.mark.usefixtures("uncompiled")
WIDER = replace(CONFIG, hidden_size=256, intermediate_size=512)


KINDS: list[dict[str, Any]] = [
    {},
    {"dtype": "bfloat16"},
    {"kv_cache": "q8_0"},
    {"dtype": "bfloat16", "kv_cache": "q8_0", "quantization": "q4_0"},
    {"quantization": "q8_0"},
    {"experts": 4},
    {"experts": 4, "dtype": "bfloat16"},
    {"experts": 4, "quantization": "q4_0"},
]


def session_of(
    window: Window | tuple[Window, ...], *, experts: int | None = None, dtype: str = "float32", **options: Any
) -> Session:
    config = replace(WIDER, num_local_experts=experts, num_experts_per_tok=2) if experts else WIDER
    return Session(config.with_window(window), max_chunk=200, dtype=dtype, **options)


def asked_and_counted(session: Session, step: Callable[[], object]) -> tuple[int, int]:
    """Bytes that a step asks for, and the most that MLX counts beside those that are held before: it waits for each
    kernel, as it does where memory is short."""
    asked, has_room = list[int](), Memory.has_room

    def noted(memory: Memory, more: int) -> bool:
        asked.append(more)
        return has_room(memory, more)

    limit = mx.set_memory_limit(0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Memory, "has_room", noted)
            before = in_use()
            mx.reset_peak_memory()
            step()
            return asked[0], mx.get_peak_memory() - before
    finally:
        mx.set_memory_limit(limit)


@settings(max_examples=15)  # each of three steps
@given(
    kind=st.sampled_from(KINDS),
    window=st.sampled_from([*range(1, 9), 100, None, (None, 5)]),
    data=st.data(),
)
def test_a_step_takes_no_more_than_it_asks_for(kind: dict[str, Any], window: Any, data: st.DataObject) -> None:
    """Prompts and what follows, of one sequence or two; an eighth of it is taken at least."""
    session = session_of(window, **kind)
    lengths = st.one_of(st.integers(1, 20), st.sampled_from([40, 100]))  # across W and 2 W
    lanes = [session.manager.open() for _ in range(data.draw(st.sampled_from([1, 2])))]
    for counts in (data.draw(st.lists(lengths, min_size=len(lanes), max_size=len(lanes))), [1] * len(lanes)):
        chunks = [Chunk(lane, text(count), range(count)) for lane, count in zip(lanes, counts, strict=True)]
        asked, counted = asked_and_counted(session, partial(session.step, chunks))
        assert counted <= asked <= 8 * counted
        session.together(lanes)  # what a join copies is asked for in its own place


@pytest.mark.parametrize("expose", [expose_hidden_states, expose_attention_weights])
def test_exposed_values_are_asked_for(expose: Callable[[Graph], Graph]) -> None:
    session = Session(WIDER, expose(build(WIDER)), max_chunk=200)
    chunk = Chunk(session.manager.open(), text(100), range(100))
    asked, counted = asked_and_counted(session, lambda: session.program.step(session.manager.plan([chunk])))
    assert counted <= asked <= 8 * counted

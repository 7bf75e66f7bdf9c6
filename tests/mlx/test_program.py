"""Steps of the MLX executor's programs, through the protocol."""

import numpy as np
import pytest
from mistral_portable_mlx import BACKEND
from mlx_sessions import CONFIG, Session, text

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.cache import Chunk
from mistral_portable.errors import ClosedError
from mistral_portable.graph import build
from mistral_portable.graph.passes import expose_attention_weights, expose_hidden_states
from mistral_portable.testing import Case, Feed, Scenario, check, random_weights

pytestmark = pytest.mark.usefixtures("uncompiled")


def test_outputs_are_the_callers_own() -> None:
    session, other = Session(), Session()
    lane, first = session.begin(text(7))
    kept = first.copy()
    first.fill(np.nan)
    np.testing.assert_array_equal(session.feed(lane, text(9, 1)), other.feed(other.begin(text(7))[0], text(9, 1)))
    assert np.isfinite(kept).all()


def test_a_chunk_that_nobody_asks_rows_of_gives_none_and_is_cached() -> None:
    session, other = Session(), Session()
    lane = session.manager.open()
    out = session.program.step(session.manager.plan([Chunk(lane, text(40))]))
    assert out["logits"].shape == (0, CONFIG.vocab_size)
    expected = other.feed(other.begin(text(40))[0], text(4, 1))
    np.testing.assert_array_equal(session.feed(lane, text(4, 1)), expected)


def test_hidden_states_and_attention_weights_over_a_wrapped_ring() -> None:
    graph = expose_attention_weights(expose_hidden_states(build(CONFIG.with_window((5, None)))))
    config = CONFIG.with_window((5, None))
    tokens = tuple(text(40))
    scenario = Scenario(
        (
            (Feed(0, tokens[:9], 9), Feed(1, tokens[5:7], 2)),
            (Feed(1, tokens[7:20], 13),),
            *((Feed(0, (token,), 1),) for token in tokens[9:30]),
        )
    )
    result = check(
        Case("all", config, graph, random_weights(graph, 0), scenario), BACKEND, ExecutorOptions(dtype="float32")
    )
    assert result.status == "pass", result


def test_a_closed_program_says_so() -> None:
    session = Session()
    plan = session.manager.plan([Chunk(session.manager.open(), [1, 2], [1])])
    session.program.step(plan)
    assert session.program.cache_bytes > 0
    session.program.close()
    session.program.close()
    assert session.program.cache_bytes == 0
    for call in (
        lambda: session.program.step(plan),
        lambda: session.program.submit(plan),
        lambda: session.program.read_pages(0, [0]),
        lambda: session.program.write_pages(0, [0], {}),
    ):
        with pytest.raises(ClosedError, match="closed: prepare it again"):
            call()

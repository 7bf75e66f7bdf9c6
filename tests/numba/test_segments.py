"""Attention over several segments: the same bits whether threads share out segments or heads, and merge them."""

from dataclasses import replace

import numpy as np
import pytest
from numba_sessions import CONFIG, KV_CACHES, Session, text

# 16 tokens of 12 heads are worked on head by head, fewer than 11 with all heads, segment by segment.
MODEL = replace(CONFIG, num_attention_heads=12, num_key_value_heads=3)
LENGTH = 1100  # three segments


@pytest.mark.parametrize("kv_cache", KV_CACHES)
@pytest.mark.parametrize("window", [None, 700])
def test_chunks_and_threads_leave_the_bits_as_they_are(kv_cache: str, window: int | None) -> None:
    def logits(chunk: int, threads: int, alone: int) -> list[float]:
        """Logits of the last tokens; `alone` of them are read one by one."""
        session = Session(
            MODEL.with_window(window), kv_cache=kv_cache, threads=threads, max_context=LENGTH, max_chunk=chunk
        )
        tokens = text(LENGTH)
        lane, first = session.begin(tokens[: LENGTH - alone])
        rest = [session.feed(lane, [token]) for token in tokens[LENGTH - alone :]]
        found: list[float] = np.concatenate([first, *rest])[-20:].tolist()
        return found

    expected = logits(LENGTH, 1, 0)
    assert logits(37, 3, 0) == expected
    assert logits(512, 2, 12) == expected

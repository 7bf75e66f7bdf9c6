"""The sliding window: exactly W keys, itself included; W = 1..8 and None, exhaustively over short texts."""

import numpy as np
import pytest

from mistral_portable.cache import first_visible, visible
from mistral_portable.config import Window

POSITIONS = range(20)
WINDOWS: list[Window] = [*range(1, 9), None]


def test_window_3_by_hand() -> None:
    assert [key for key in POSITIONS if visible(5, key, 3)] == [3, 4, 5]
    assert [key for key in POSITIONS if visible(1, key, 3)] == [0, 1]
    assert [key for key in POSITIONS if visible(5, key, None)] == [0, 1, 2, 3, 4, 5]
    assert (first_visible(5, 3), first_visible(1, 3), first_visible(5, None)) == (3, 0, 0)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_query_sees_the_last_w_keys_up_to_itself(window: Window) -> None:
    for query in POSITIONS:
        up_to_itself = list(range(query + 1))
        expected = up_to_itself if window is None else up_to_itself[-window:]
        assert [key for key in POSITIONS if visible(query, key, window)] == expected
        assert first_visible(query, window) == expected[0]


@pytest.mark.parametrize("window", WINDOWS)
def test_arrays_broadcast_like_scalars(window: Window) -> None:
    positions = np.array(POSITIONS)
    expected = [[visible(query, key, window) for key in POSITIONS] for query in POSITIONS]
    assert visible(positions[:, None], positions[None, :], window).tolist() == expected

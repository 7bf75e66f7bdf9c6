"""Options of the Numba executor, its precision, and its progress."""

from dataclasses import replace
from typing import Any

import pytest
from numba_sessions import CONFIG, Session

from mistral_portable.errors import BackendError
from mistral_portable.graph import Node, build


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype='float16': it computes in int8, float32, bfloat16"),
        ({"dtype": "int4"}, "dtype='int4': it computes in int8, float32, bfloat16"),
        ({"kv_cache": "bfloat16"}, "kv_cache='bfloat16': it keeps keys and values in float16, q8_0, float32"),
        ({"device": "cuda"}, "device='cuda': it has no such choice"),
    ],
)
def test_unsupported_options_are_an_error_of_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        Session(**options)
    assert "\n" not in str(caught.value)


def test_an_unknown_op_is_refused() -> None:
    graph = build(CONFIG, head="none")
    graph = replace(graph, nodes=(*graph.nodes, Node("more", "convolve", ("norm",), {})))
    with pytest.raises(BackendError, match="cannot run the op 'convolve'"):
        Session(graph=graph)


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({}, ("float32", "int8", "float16")),
        ({"dtype": "int8", "kv_cache": "q8_0"}, ("float32", "int8", "q8_0")),
        ({"dtype": "bfloat16"}, ("bfloat16", "int8", "float16")),
        ({"dtype": "float32"}, ("float32", None, "float32")),
        ({"dtype": "float32", "kv_cache": "float16"}, ("float32", None, "float16")),
    ],
)
def test_precision(options: dict[str, Any], precision: tuple[str | None, ...]) -> None:
    found = Session(**options).program.precision
    assert (found.dtype, found.quantized_linear, found.kv_cache) == precision


def test_progress_of_the_weights() -> None:
    calls: list[tuple[str, int, int]] = []
    Session(progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls if call[0] == "weights"]
    assert done == sorted(done)
    assert done[-1] == calls[-1][2] > 0

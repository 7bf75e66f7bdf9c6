"""A token's logits have the same bits in any chunks, beside any other sequences, from any number of threads."""

import re
from collections.abc import Mapping
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_numba.backend import NumbaBackend
from mistral_portable_numba.layouts import PAGE_SIZE
from numba_kernels import EVERY_ISA, NEEDS_AMX, product_kernels
from numba_linear import KINDS
from numpy.typing import NDArray
from weights.files import bfloat16, random_tensors, small_config

from mistral_portable.boundary import ExecutorOptions, Program, prepare
from mistral_portable.cache import CacheSpec
from mistral_portable.graph import build
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing import Feed, Scenario, run
from mistral_portable.weights import DenseTensor, QuantTensor, Tensor

# The LM head does not fill a tile, and `down_proj` has more columns than are unpacked at a time. The longest text has
# several pages, the oldest of which leave the window.
CONFIG = small_config(
    vocab_size=70, hidden_size=256, intermediate_size=768, head_dim=64, num_hidden_layers=2, sliding_window=(24, None)
)
GRAPH = select_rows(build(CONFIG), "logits")
TEXTS = tuple(tuple(np.random.default_rng(length).integers(0, 70, length).tolist()) for length in (110, 40, 11))
LONGEST, SURPLUS = 40, (1, 2, 3)
SPEC = CacheSpec.from_config(
    CONFIG, max_context=128, page_size=PAGE_SIZE, max_chunk=LONGEST + len(SURPLUS), max_lanes=2 * len(TEXTS)
)
FLOATS = ("float32", "float16", "bfloat16")
# Each weight type with one cache type: no kernel depends on both.
TYPES = list(zip((*FLOATS, *KINDS), cycle(["float32", "float16", "q8_0"])))


@cache
def weights_of(kind: str) -> Mapping[str, Tensor]:
    """Random weights for CONFIG: matrices in blocks, or of a float type."""
    arrays = random_tensors(CONFIG, np.random.default_rng(1), None if kind in FLOATS else kind.upper())
    return {name: as_tensor(name, array, kind) for name, array in arrays.items()}


def as_tensor(name: str, array: NDArray[Any], kind: str) -> Tensor:
    if array.dtype == np.uint8:
        return QuantTensor(name, GRAPH.tensors[name], GGMLQuantizationType[kind.upper()], array)
    if array.ndim == 1 or kind not in FLOATS:
        return DenseTensor(name, "float32", array)
    return DenseTensor(name, kind, bfloat16(array) if kind == "bfloat16" else array.astype(kind))


@cache
def program(isa: str | None, kind: str, kv_cache: str, threads: int, dtype: str = "int8") -> Program:
    """One program for all schedules, which reuse its lanes.

    isa: None for this machine's best.
    """
    if isa is not None:
        product_kernels(isa)
    options = ExecutorOptions(kv_cache=kv_cache, threads=threads, dtype=dtype)
    return prepare(NumbaBackend(isa), GRAPH, weights_of(kind), SPEC, options)


def logits(program: Program, scenario: Scenario) -> Mapping[int, NDArray[np.uint32]]:
    """The bits of each sequence's logits."""
    outputs = run(program, GRAPH, SPEC, scenario)
    return {sequence: named["logits"].view(np.uint32) for sequence, named in outputs.items()}


@cache
def alone(isa: str | None, kind: str, kv_cache: str, dtype: str = "int8") -> list[NDArray[np.uint32]]:
    """The bits of each text's logits, computed alone, token by token, on one thread."""
    scenarios = (Scenario(tuple((Feed(0, (token,), 1),) for token in text)) for text in TEXTS)
    return [logits(program(isa, kind, kv_cache, 1, dtype), scenario)[0] for scenario in scenarios]


@st.composite
def schedules(draw: st.DrawFn) -> Scenario:
    """TEXTS in chunks of drawn sizes, batched or not, with tokens rolled back, and lanes saved and loaded."""
    sizes = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 16, 33, LONGEST])
    steps: list[list[Feed]] = []
    for sequence, text in enumerate(TEXTS):
        step, begin = draw(st.integers(0, 5)), 0
        for size in cycle(draw(st.lists(sizes, min_size=1, max_size=4))):
            chunk = text[begin : begin + size]
            steps += [[] for _ in range(step + 1 - len(steps))]
            steps[step].append(Feed(sequence, chunk + SURPLUS * draw(st.booleans()), len(chunk)))
            step, begin = step + 1, begin + size
            if begin >= len(text):
                break
    return Scenario(tuple(tuple(draw(st.permutations(feeds))) for feeds in steps if feeds), swap=draw(st.booleans()))


@EVERY_ISA
@pytest.mark.parametrize(("kind", "kv_cache"), TYPES)
@settings(max_examples=4)
@given(schedule=schedules(), threads=st.sampled_from([1, 2, 3, 5]))
def test_any_schedule_gives_the_bits_of_each_text_alone(
    isa: str, kind: str, kv_cache: str, schedule: Scenario, threads: int
) -> None:
    found = logits(program(isa, kind, kv_cache, threads), schedule)
    for sequence, expected in enumerate(alone(isa, kind, kv_cache)):
        np.testing.assert_array_equal(found[sequence], expected)


@NEEDS_AMX
@settings(max_examples=12)  # each runs five sequences in a drawn schedule; the kernels' own tests draw more
@given(schedule=schedules(), threads=st.sampled_from([1, 2, 3, 5]))
def test_so_do_products_of_tiles(schedule: Scenario, threads: int) -> None:
    found = logits(program(None, "bfloat16", "float32", threads, "bfloat16"), schedule)
    for sequence, expected in enumerate(alone(None, "bfloat16", "float32", "bfloat16")):
        np.testing.assert_array_equal(found[sequence], expected)


@NEEDS_AMX
def test_only_by_request_are_inputs_rounded_to_bfloat16() -> None:
    """By default AMX does not multiply float weights: the bits are those of AVX-512."""
    exact = np.concatenate(alone("avx512_vnni", "bfloat16", "float32"))
    assert np.array_equal(np.concatenate(alone(None, "bfloat16", "float32")), exact)
    assert not np.array_equal(np.concatenate(alone(None, "bfloat16", "float32", "bfloat16")), exact)


@pytest.mark.parametrize(("max_chunk", "max_lanes", "max_context"), [(LONGEST, 2, 128), (100, 5, 300)])
def test_a_cache_of_other_sizes_gives_the_same_bits(max_chunk: int, max_lanes: int, max_context: int) -> None:
    sizes = {"max_chunk": max_chunk, "max_lanes": max_lanes, "max_context": max_context}
    spec = CacheSpec.from_config(CONFIG, page_size=PAGE_SIZE, **sizes)
    other = prepare(NumbaBackend(), GRAPH, weights_of("q4_0"), spec, ExecutorOptions(kv_cache="float16"))
    scenario = Scenario(tuple((Feed(0, (token,), 1),) for token in TEXTS[0]))
    found = run(other, GRAPH, spec, scenario)[0]["logits"]
    own = prepare(NumbaBackend(), GRAPH, weights_of("q4_0"), SPEC, ExecutorOptions(kv_cache="float16"))
    np.testing.assert_array_equal(found, run(own, GRAPH, SPEC, scenario)[0]["logits"])


def test_the_example_of_the_document_holds() -> None:
    document = (Path(__file__).parents[2] / "docs" / "determinism.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    assert code.count("assert ") == 2
    exec(code, {})

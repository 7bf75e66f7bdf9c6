"""docs/writing-a-backend.md is true: its code is the toy's, its plan is the manager's."""

import re
from collections.abc import Iterable
from pathlib import Path
from textwrap import indent

import numpy as np
import pytest
from mistral_portable_toy import BACKEND
from mistral_portable_toy.attention import held_positions
from numpy.typing import NDArray

from mistral_portable.boundary import Backend
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.testing.suite import RUNGS

TESTS = Path(__file__).parents[1]
DOC = (TESTS.parent / "docs" / "writing-a-backend.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
SOURCES = [
    file.read_text()
    for file in [
        TESTS / "toy_backend" / "pyproject.toml",
        TESTS / "conformance" / "test_toy.py",
        *(TESTS / "toy_backend" / "mistral_portable_toy").glob("*.py"),
    ]
]


def test_blocks_are_found() -> None:
    assert [language for language, _ in BLOCKS].count("python") == 10


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language in ("python", "toml")])
def test_code_is_quoted_from_the_toy(code: str) -> None:
    quotes = [indent(code, " " * depth) for depth in (0, 4, 8)]  # a method, or its lines, are not indented in the doc
    assert any(quote in source for quote in quotes for source in SOURCES)


def test_plan_is_the_managers() -> None:
    config = MistralConfig(
        vocab_size=30,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2,
        sliding_window=3,
    )
    pages = BACKEND.capabilities.page_size
    manager = CacheManager(CacheSpec.from_config(config, max_context=99, page_size=pages, max_chunk=3, max_lanes=2))
    a, b = manager.open(), manager.open()
    manager.plan([Chunk(a, [10, 11, 12])])
    manager.plan([Chunk(a, [13])])
    plan = manager.plan([Chunk(a, [14, 15], rows=[1]), Chunk(b, [20, 21, 22], rows=[2])])

    def parts(arrays: Iterable[NDArray[np.int32]]) -> str:
        return " | ".join(" ".join(map(str, array.tolist())) for array in arrays)

    def ragged(array: NDArray[np.int32]) -> str:
        return parts(np.split(array, plan.query_starts[1:-1]))

    (reads,) = plan.groups
    (block,) = (code for language, code in BLOCKS if language == "text")
    assert block.splitlines() == [
        f"tokens        [{ragged(plan.tokens)}]",
        f"positions     [{ragged(plan.positions)}]",
        f"lanes         {plan.lanes}",
        f"query_starts  {plan.query_starts}",
        f"logit_rows    {plan.logit_rows}",
        f"slot_mapping  [{ragged(reads.slot_mapping)}]",
        f"pages         [{parts(reads.pages)}]",
        f"first         {reads.first}",
        f"copies        {reads.copies.tolist()}",
        f"page_count    {reads.page_count}",
    ]
    assert held_positions(6, 2, 4).tolist() == list(range(4, 12))


def test_names_are_real() -> None:
    for name in ("name", "capabilities", "probe", "default_dtype", "prepare"):
        assert hasattr(Backend, name)
        assert f"| `{name}" in DOC
    assert "op.rope" in RUNGS

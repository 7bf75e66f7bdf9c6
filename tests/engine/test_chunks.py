"""The sizes of plans, of programs that want prompts in other chunks than those of their spec."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from program_sessions import CONFIG

from mistral_portable.cache import CacheSpec
from mistral_portable.config import Window
from mistral_portable.engine.chunks import spec_of_plans


def spec_for(window: Window | tuple[Window, ...], context: int = 100) -> CacheSpec:
    return CacheSpec.from_config(CONFIG.with_window(window), max_context=context, page_size=4, max_chunk=8)


def program(**wants: int) -> Any:
    return SimpleNamespace(**wants)


@pytest.mark.parametrize("window", [1, 3, None])
def test_a_program_says_how_long_chunks_are_up_to_the_context(window: Window) -> None:
    spec = spec_for(window)
    assert spec_of_plans(spec, program()) == spec
    assert spec_of_plans(spec, program(prompt_chunk=40)) == replace(spec, max_chunk=40)
    assert spec_of_plans(spec, program(prompt_chunk=400)).max_chunk == 100


def test_lanes_that_are_limited_or_of_several_windows_do_not_grow() -> None:
    """A windowed lane of 8 tokens a step holds 2 + 2 * 8 positions, and 2 + 2 * 40 of 40; one without a window all."""
    wants = program(prompt_chunk=40)
    assert spec_of_plans(spec_for(3), wants, limited=True).max_chunk == 8
    assert spec_of_plans(spec_for(None), wants, limited=True).max_chunk == 40
    assert spec_of_plans(spec_for((None, 3)), wants).max_chunk == 8
    assert spec_of_plans(spec_for((None, 30), context=40), wants).max_chunk == 40
    assert spec_of_plans(spec_for(3, context=20), wants, limited=True).max_chunk == 20

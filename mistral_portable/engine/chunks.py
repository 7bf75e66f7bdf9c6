"""Chunks: how many tokens of prompts a step reads."""

from dataclasses import replace

from mistral_portable.boundary import ChunkingProgram, Program
from mistral_portable.cache import CacheSpec

__all__ = ["CHUNK", "spec_of_plans"]

CHUNK = 512
"""Tokens of prompts in a step: where the program wants no other number, beside texts of others that decode, and where
memory is short."""


def spec_of_plans(spec: CacheSpec, program: Program, *, limited: bool = False) -> CacheSpec:
    """The sizes of the plans that a program gets: those that it was prepared with, and chunks that it likes.

    limited: whether lanes must keep to a number of bytes. Those of windowed layers hold two chunks beside the window,
    so chunks stay as they are if lanes would grow by that and are limited, or if there are layers of several windows:
    the pools of one kind, which do not shrink, might keep what another kind needs later.

    Example: window 3 and chunks of 2 tokens, a program that wants 4: a lane holds 2 + 2 * 4 = 10 positions in place of
    6. If lanes are limited, chunks stay at 2; without a window they become 4.
    """
    if not isinstance(program, ChunkingProgram):
        return spec
    wanted = replace(spec, max_chunk=min(program.prompt_chunk, spec.max_context))
    grows = wanted.lane_bytes(1) > spec.lane_bytes(1)
    return spec if grows and (limited or len(spec.groups) > 1) else wanted

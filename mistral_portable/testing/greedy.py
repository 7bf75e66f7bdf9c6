"""Whether the tokens that a GreedyProgram takes on its device are those of the highest logits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import Backend, ExecutorOptions, GreedyProgram, Program, Step, prepare
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.cache import CacheManager, CacheSpec, Chunk, StepPlan
from mistral_portable.testing.case import Case
from mistral_portable.testing.scenario import given_inputs

__all__ = ["ByHost", "greedy_tokens"]

_UNKNOWN = 1  # stands for a token that is on the device; odd: `given_inputs` leaves it alone


class _Feed(NamedTuple):
    """Prompt tokens, or none for the token chosen last. rows: how many of them want logits, the last ones."""

    sequence: int
    tokens: tuple[int, ...]
    rows: int


def greedy_tokens(case: Case, backend: Backend, options: ExecutorOptions, count: int) -> tuple[list[int], list[int]]:
    """Continue the case's texts together, by `count` tokens each: as the device chooses, and as `step`'s logits say.

    On the device each step begins before a token of the last one is read. Sequences begin one after the other, read
    their prompts in chunks beside those that decode, end one after the other, and are in another order in each step.
    Rows in place of embeddings are the case's in the prompts, and none in the answers.
    """
    texts = case.scenario.texts.values()
    copies = -(-3 // len(texts))  # three sequences at least
    prompts = [text[: len(text) - cut] or text for text in texts for cut in range(copies)]
    longest = max(map(len, prompts))
    spec = CacheSpec.from_config(
        case.config,
        max_context=longest + count,
        page_size=backend.capabilities.page_size,
        max_chunk=longest,
        max_lanes=len(prompts),
    )
    program = prepare(backend, case.graph, case.weights, spec, options)
    try:
        assert isinstance(program, GreedyProgram), f"{backend.name}'s program has no submit"
        turns, manager = _turns(prompts, count), CacheManager(spec)
        by_device = _run(program, program, case, manager, turns)
        return by_device, _run(program, ByHost(program), case, manager, turns)
    finally:
        program.close()


class ByHost:
    """A GreedyProgram whose tokens the host chooses, by the logits of a program's `step`."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def submit(self, plan: StepPlan, inputs: Inputs = NO_INPUTS, *, after: Step | None = None) -> "Chosen":
        if after is not None and plan.sources is not None:
            tokens = np.where(plan.sources < 0, plan.tokens, after.tokens()[plan.sources])
            plan = plan._replace(tokens=tokens, sources=None)
        logits = self._program.step(plan, inputs)["logits"]
        return Chosen(np.where(np.isfinite(logits.max(axis=-1)), logits.argmax(axis=-1), -1).astype(np.int32))


class Chosen(NamedTuple):
    """A step that is over."""

    chosen: NDArray[np.int32]

    def tokens(self) -> NDArray[np.int32]:
        return self.chosen


def _turns(prompts: Sequence[tuple[int, ...]], count: int) -> list[list[_Feed]]:
    """The sequences of each step. Sequence s begins in step s and reads chunks of s + 2 tokens; of the last one the
    logits of two tokens are wanted, so that rows are not counted like sequences."""
    turns: list[list[_Feed]] = []
    for s, prompt in enumerate(prompts):
        chunks = [prompt[begin : begin + s + 2] for begin in range(0, len(prompt), s + 2)]
        feeds = [_Feed(s, chunk, 0) for chunk in chunks[:-1]]
        feeds += [_Feed(s, chunks[-1], min(2, len(chunks[-1]))), *[_Feed(s, (), 1)] * (count - 1)]
        turns += [[] for _ in range(s + len(feeds) - len(turns))]
        for turn, feed in zip(turns[s:], feeds, strict=False):
            turn.append(feed)
    return [turn[number % len(turn) :] + turn[: number % len(turn)] for number, turn in enumerate(turns)]


def _run(
    program: Program, chooser: GreedyProgram, case: Case, manager: CacheManager, turns: list[list[_Feed]]
) -> list[int]:
    """The tokens of all rows, none of which is read before the last step has begun."""
    lanes: dict[int, int] = {}
    newest: dict[int, int] = {}  # the row of the step before that has each sequence's newest token
    steps: list[Step] = []
    ends = {feed.sequence: number for number, turn in enumerate(turns) for feed in turn}
    for number, turn in enumerate(turns):
        chunks, end = list[Chunk](), 0
        for sequence, tokens, rows in turn:
            if sequence not in lanes:
                lanes[sequence] = manager.open()
            size, source = len(tokens) or 1, None if tokens else newest[sequence]
            chunks.append(Chunk(lanes[sequence], tokens or (_UNKNOWN,), range(size - rows, size), source=source))
            end += rows
            newest[sequence] = end - 1
        plan = manager.plan(chunks)
        inputs = given_inputs(plan, case.graph, case.scenario.embeds)
        if end:
            steps.append(chooser.submit(plan, inputs, after=steps[-1] if steps else None))
        else:
            program.step(plan, inputs)
        for sequence, last in ends.items():
            if last == number:
                manager.close(lanes.pop(sequence))
    return [int(token) for step in steps for token in step.tokens()]

"""The tokens that follow a prompt, one step after the other: the sampler's choice, or the device's own."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING

from mistral_portable.boundary import GreedyProgram, GreedyStep
from mistral_portable.cache import Chunk
from mistral_portable.errors import CacheError, InputError
from mistral_portable.sampling import Sampled, Sampler, SamplingParams

if TYPE_CHECKING:
    from mistral_portable.engine.model import Model

__all__ = ["decode"]


def decode(model: "Model", lane: int, prompt: Sequence[int], params: SamplingParams) -> Iterator[Sampled]:
    """Yield token after token, until `params.max_tokens` or the end of the context; the caller may stop before.

    The lane is empty. The first token takes the whole prompt, a chunk at a time.
    """
    greedy = params.takes_likeliest and isinstance(model.program, GreedyProgram)
    return (_likeliest if greedy else _sampled)(model, lane, prompt, params)


def _sampled(model: "Model", lane: int, prompt: Sequence[int], params: SamplingParams) -> Iterator[Sampled]:
    sampler = Sampler(params, prompt_tokens=prompt)
    logits = model.step([_last_chunk(model, lane, prompt)])
    for number in count(1):
        sampled = sampler.sample(logits[0])
        yield sampled
        if _done(model, lane, params, number):
            return
        logits = model.step([Chunk(lane, [sampled.token], rows=[0])])


def _likeliest(model: "Model", lane: int, prompt: Sequence[int], params: SamplingParams) -> Iterator[Sampled]:
    """Each step begins before the host reads the token of the one before it. If the caller stops, one was in vain."""
    step = model.begin_greedy([_last_chunk(model, lane, prompt)])
    yield _read(step)  # before anything else begins: its time is the prompt's
    if _done(model, lane, params, 1):
        return
    step = model.begin_greedy([Chunk(lane, [0], rows=[0])], after=step)
    for number in count(2):
        if _done(model, lane, params, number):
            yield _read(step)
            return
        try:
            following = model.begin_greedy([Chunk(lane, [0], rows=[0])], after=step)
        except CacheError:  # no memory for one token more: this one is there all the same, and may be the last
            yield _read(step)
            raise
        yield _read(step)
        step = following


def _read(step: GreedyStep) -> Sampled:
    token = int(step.tokens()[0])
    if token < 0:
        raise InputError(
            "a logit is not finite: the weights are corrupt or the dtype overflowed; "
            "try float32, another backend, or `mistral-portable verify`"
        )
    return Sampled(token)


def _last_chunk(model: "Model", lane: int, prompt: Sequence[int]) -> Chunk:
    """Run all chunks of the prompt but the last, which asks for the logits behind it."""
    size = model.manager.spec.max_chunk
    *chunks, last = (prompt[start : start + size] for start in range(0, len(prompt), size))
    for chunk in chunks:
        model.step([Chunk(lane, chunk)])
    return Chunk(lane, last, rows=[len(last) - 1])


def _done(model: "Model", lane: int, params: SamplingParams, number: int) -> bool:
    return number == params.max_tokens or model.manager.length(lane) == model.max_context

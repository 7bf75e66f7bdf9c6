"""The tokens that follow a prompt, one step after the other: the sampler's choice, or the device's own."""

from collections.abc import Iterator, Sequence
from itertools import count

from mistral_portable.boundary import GreedyProgram, GreedyStep
from mistral_portable.cache import Chunk
from mistral_portable.engine.core import Core
from mistral_portable.errors import CapacityError, NumericsError
from mistral_portable.sampling import Sampled, Sampler, SamplingParams

__all__ = ["decode"]


def decode(core: Core, lane: int, prompt: Sequence[int], params: SamplingParams) -> Iterator[Sampled]:
    """Yield token after token, until `params.max_tokens` or the end of the context; the caller may stop before.

    The lane is empty. The first token takes the whole prompt, a chunk at a time. Raises the errors of `Core.step` and
    `Sampler.sample`.
    """
    greedy = params.is_greedy and isinstance(core.program, GreedyProgram)
    return (_greedy if greedy else _sampled)(core, lane, prompt, params)


def _sampled(core: Core, lane: int, prompt: Sequence[int], params: SamplingParams) -> Iterator[Sampled]:
    sampler = Sampler(params, prompt_tokens=prompt)
    logits = core.step([core.feed(lane, prompt)])
    for number in count(1):
        sampled = sampler.sample(logits[0])
        yield sampled
        if _done(core, lane, params, number):
            return
        logits = core.step([Chunk(lane, [sampled.token], rows=[0])])


def _greedy(core: Core, lane: int, prompt: Sequence[int], params: SamplingParams) -> Iterator[Sampled]:
    """Begin each step before the host reads the token of the one before it; if the caller stops, one was in vain."""
    step = core.begin_greedy([core.feed(lane, prompt)])
    yield _read(step)  # before anything else begins: its time is the prompt's
    if _done(core, lane, params, 1):
        return
    step = core.begin_greedy([Chunk(lane, [0], rows=[0])], after=step)
    for number in count(2):
        if _done(core, lane, params, number):
            yield _read(step)
            return
        try:
            following = core.begin_greedy([Chunk(lane, [0], rows=[0])], after=step)
        except CapacityError:  # no memory for one token more: this one is there all the same, and may be the last
            yield _read(step)
            raise
        yield _read(step)
        step = following


def _read(step: GreedyStep) -> Sampled:
    token = int(step.tokens()[0])
    if token < 0:
        raise NumericsError(
            "a logit is not finite: the weights are corrupt or the dtype overflowed; "
            "try float32, another backend, or `mistral-portable verify`"
        )
    return Sampled(token)


def _done(core: Core, lane: int, params: SamplingParams, number: int) -> bool:
    return number == params.max_tokens or core.manager.length(lane) == core.max_context

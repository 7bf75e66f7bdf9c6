"""Loads for an engine that serves many callers: prompts, lengths of answers, and when each request begins.

Not a command; used by `tools/bench_serving.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["After", "Load", "Mix", "Request", "callers", "chat", "intruder", "poisson", "sharers"]

Seed = int | Sequence[int]


@dataclass(frozen=True)
class After:
    """The moment at which a request has made `tokens` tokens; None: at which its answer is complete."""

    request: int
    tokens: int | None = None


@dataclass(frozen=True)
class Request:
    """A prompt of token ids, and the number of tokens of its answer.

    begins: seconds after the load began, or a moment of an earlier request. continues: index of an earlier request
    whose prompt and answer come before this prompt, like in a chat; that one must be over when this one begins.
    """

    prompt: tuple[int, ...]
    answer: int
    begins: float | After = 0.0
    continues: int | None = None


@dataclass(frozen=True)
class Load:
    """Requests by index. until: index of the request at whose end those that still run are cancelled; None: none."""

    requests: tuple[Request, ...]
    until: int | None = None

    @property
    def room(self) -> int:
        """The most positions that a request takes, its prompt, its answer and what it continues together."""
        lengths: list[int] = []
        for request in self.requests:
            before = 0 if request.continues is None else lengths[request.continues]
            lengths.append(before + len(request.prompt) + request.answer)
        return max(lengths)


@dataclass(frozen=True)
class Mix:
    """Requests of random lengths that arrive at random times.

    requests: how many. rate: arrivals per second, on average. prompts, answers: lengths in tokens, all equally
    probable. beginnings: (how many, tokens of each), of which a prompt has one in front with the probability `share`.
    """

    requests: int
    rate: float
    prompts: Sequence[int] = (16, 64, 256, 1024)
    answers: Sequence[int] = (8, 32, 128)
    beginnings: tuple[int, int] = (3, 256)
    share: float = 0.5


def poisson(mix: Mix, vocab: int, seed: Seed) -> Load:
    """Draw a load from a mix; arrivals are a Poisson process.

    In all functions here, vocab is the number of token ids, and the same seed gives the same load.
    """
    rng = np.random.default_rng(seed)
    count, length = mix.beginnings
    beginnings = [_tokens(rng, vocab, length) for _ in range(count)]
    requests = []
    for arrival in np.cumsum(rng.exponential(1 / mix.rate, mix.requests)).tolist():
        begins_alike = rng.random() < mix.share
        beginning = beginnings[rng.integers(count)] if begins_alike else ()
        own = _tokens(rng, vocab, int(rng.choice(mix.prompts)))
        requests.append(Request(beginning + own, int(rng.choice(mix.answers)), arrival))
    return Load(tuple(requests))


def callers(count: int, answer: int, vocab: int, seed: Seed) -> Load:
    """`count` requests at once, with prompts of one token: as many answers that grow together from the first step."""
    rng = np.random.default_rng(seed)
    return Load(tuple(Request(_tokens(rng, vocab, 1), answer) for _ in range(count)))


def chat(prompt: int, answer: int, new: int, between: bool, vocab: int, seed: Seed) -> Load:
    """A chat of two turns: `prompt` tokens and an answer, then `new` tokens behind both and another answer.

    between: another chat, as long as the first turn, runs between the turns. The second turn is the last request.
    """
    rng = np.random.default_rng(seed)
    requests = [Request(_tokens(rng, vocab, prompt), answer)]
    if between:
        requests.append(Request(_tokens(rng, vocab, prompt), answer, After(0)))
    second = Request(_tokens(rng, vocab, new), answer, After(len(requests) - 1), continues=0)
    return Load((*requests, second))


def sharers(count: int, common: int, own: int, answer: int, vocab: int, seed: Seed) -> Load:
    """`count` requests at once, whose prompts are the same `common` tokens and then `own` tokens of their own."""
    rng = np.random.default_rng(seed)
    beginning = _tokens(rng, vocab, common)
    return Load(tuple(Request(beginning + _tokens(rng, vocab, own), answer) for _ in range(count)))


def intruder(decoding: int, before: int, prompt: int, answer: int, vocab: int, seed: Seed) -> Load:
    """`decoding` requests with short prompts; when the first has made `before` tokens, a prompt of `prompt` arrives.

    The load ends with the answer to that prompt, the last request; the others answer until then.
    """
    rng = np.random.default_rng(seed)
    endless = before + prompt  # one token for each of the prompt's: more than any engine makes meanwhile
    others = [Request(_tokens(rng, vocab, 16), endless) for _ in range(decoding)]
    return Load((*others, Request(_tokens(rng, vocab, prompt), answer, After(0, before))), until=decoding)


def _tokens(rng: np.random.Generator, vocab: int, count: int) -> tuple[int, ...]:
    return tuple(rng.integers(vocab, size=count).tolist())

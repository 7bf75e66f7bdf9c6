"""Measure drafts: tokens per second with and without them, on texts that repeat their prompt more or less.

    python -m tools.bench_drafts MODEL.gguf                          # traces of random tokens, one sequence and eight
    python -m tools.bench_drafts MODEL.gguf --edit BEFORE AFTER      # a file, and what it became
    python -m tools.bench_drafts MODEL.gguf --draft SMALL.gguf       # a draft model, which agrees more or less often
    python -m tools.bench_drafts MODEL.gguf --cost                   # times of steps of 1 to 16 tokens

The sampler is made to choose a trace, whatever the weights are. "copy 70 %" repeats a part of its prompt, and after
each token there is a chance that it leaves it: so that about 70 % of what is drafted is accepted. "new" repeats none.
A draft model is made to agree with a trace of new tokens at a share of the places: 90, 70, 50 and 0 %.
Each repetition runs the same trace without drafts, with them, and with prompt lookup as other libraries do it: what
stood behind the first place of the last 3 tokens, or else 2 or 1; always 10 of it.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from difflib import SequenceMatcher
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

import mistral_portable as mp
from mistral_portable.cache import Chunk
from mistral_portable.engine.drafting import Drafting
from mistral_portable.engine.loop import Loop
from mistral_portable.engine.model_drafting import ModelDrafting
from mistral_portable.engine.request import Completion
from mistral_portable.engine.suffix_drafting import SuffixDrafting
from mistral_portable.tokenizer import Tokenizer

__all__ = ["Lookup", "Trace"]

_PROMPT, _ANSWER = 512, 256


class Trace:
    """A grammar that allows one text, token after token, and does not tell that there is no choice."""

    def __init__(self, tokens: Sequence[int], vocab_size: int, agree: float = 1.0, at: int = 0) -> None:
        """agree: the share of the tokens that a draft model says, too."""
        self._tokens = tokens
        self._mask = np.zeros(vocab_size, bool)
        self._agree = agree
        self._at = at
        self.forced: int | None = None

    def begin(self, prompt_tokens: Sequence[int]) -> "Trace":
        """Begin anew."""
        return Trace(self._tokens, len(self._mask), self._agree)

    def copy(self) -> "Trace":
        """Return what a draft model goes on with from here."""
        wrong = np.random.default_rng(self._tokens[0]).random(len(self._tokens)) >= self._agree
        said = [5 + token % 7 if other else token for token, other in zip(self._tokens, wrong.tolist(), strict=True)]
        return Trace(said, len(self._mask), self._agree, self._at)

    def allowed(self) -> NDArray[np.bool_]:
        """Allow the next token of the trace."""
        self._mask[:] = False
        self._mask[self._tokens[self._at]] = True
        return self._mask

    def accept(self, token: int) -> None:
        """Go on."""
        self._at += 1


class Lookup:
    """Prompt lookup: what stood behind the first place of the last tokens, 3 of them or else 2 or 1; 10 tokens."""

    def read(self, completions: Iterable[Completion]) -> None:
        """Nothing."""

    def choose(self, completions: Sequence[Completion]) -> list[Sequence[int]]:
        """Look for each text's end in it."""
        return [self._draft(np.array(completion.tokens)) for completion in completions]

    def observe(self, tokens: int, seconds: float) -> None:
        """Nothing."""

    def forget(self, completion: Completion) -> None:
        """Nothing."""

    def _draft(self, text: NDArray[np.int64]) -> list[int]:
        for size in (3, 2, 1):
            windows = np.lib.stride_tricks.sliding_window_view(text[:-1], size)
            places = np.flatnonzero((windows == text[-size:]).all(axis=1))
            if len(places):
                begin = int(places[0]) + size
                return [int(token) for token in text[begin : begin + 10]]
        return []


def copy_trace(seed: int, vocab_size: int, stay: float) -> tuple[list[int], list[int]]:
    """A prompt of random tokens, and an answer that copies it from a random place; it leaves it behind each token with
    a chance of 1 - stay, for another token and another place."""
    random = np.random.default_rng(seed)
    prompt = random.integers(10, vocab_size, _PROMPT).tolist()
    answer, place = list[int](), 0
    while len(answer) < _ANSWER:
        if random.random() > stay:
            answer.append(int(random.integers(10, vocab_size)))
            place = int(random.integers(0, _PROMPT))
        else:
            answer.append(prompt[place % _PROMPT])
            place += 1
    return prompt, answer


def edit_trace(tokenizer: Tokenizer, before: Path, after: Path) -> tuple[list[int], list[int]]:
    """A file as the prompt, and as the answer what became of it, from a little before the first change on."""
    old, new = (tokenizer.encode(path.read_text()) for path in (before, after))
    match = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()[0]
    begin = max(0, match[4] - 20) if match[0] == "equal" else 0
    return old, new[begin : begin + 4 * _ANSWER]


def run(
    loop: Loop, model: mp.Model, traces: Sequence[tuple[list[int], list[int]]], drafts: bool, agree: float
) -> tuple[float, int, int]:
    """Answer all prompts together; return tokens per second while they decode, drafted tokens and accepted ones."""
    size = model.config.vocab_size
    answers = [
        model.answer(
            prompt,
            max_tokens=len(answer),
            temperature=0,
            grammar=Trace(answer, size, agree),
            draft="auto" if drafts else "off",
        )
        for prompt, answer in traces
    ]
    by_request = {answer.completion: answer for answer in answers}
    begin, count = 0.0, 0
    with closing(loop.run(list(by_request))) as made:
        for completion in made:
            by_request[completion].take()
            if begin:
                count += 1
            elif all(answer.sampled for answer in answers):
                begin = time.perf_counter()
    for answer, (_, expected) in zip(answers, traces, strict=True):
        assert answer.generation.tokens == tuple(expected)
    seconds = time.perf_counter() - begin
    return count / seconds, sum(c.drafted for c in by_request), sum(c.accepted for c in by_request)


def costs(model: mp.Model) -> None:
    """Print how long steps of 1 to 16 tokens of one sequence take, all of whose logits are wanted."""
    times: dict[int, list[float]] = {count: [] for count in range(1, 17)}
    with model.lane() as lane:
        model.step([Chunk(lane, list(range(5, 5 + _PROMPT)), [])])
        for _ in range(12):
            for count, some in times.items():
                begin = time.perf_counter()
                model.step([Chunk(lane, list(range(5, 5 + count)), range(count))])
                some.append(time.perf_counter() - begin)
                model.manager.rollback(lane, _PROMPT)
    one = median(times[1])
    print("| tokens | ms | times one |\n| ---: | ---: | ---: |")
    for count, some in times.items():
        print(f"| {count} | {1e3 * median(some):.1f} | {median(some) / one:.2f} |")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--edit", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--draft", metavar="SMALL.gguf")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    model = mp.load(args.model, backend="numba", threads=args.threads, draft="off")
    if args.cost:
        costs(model)
        return
    size = model.config.vocab_size
    loops = {"without": Loop(model.core)}
    kinds = {"copy 90 %": (0.975, 1.0), "copy 70 %": (0.9, 1.0), "copy 50 %": (0.75, 1.0), "new": (0.0, 1.0)}
    if args.draft:
        small = mp.load(args.draft, backend="numba", threads=args.threads, draft="off", max_lanes=16)
        loops["drafts"] = Loop(model.core, drafting=Drafting(ModelDrafting(small.core), vocab_size=size))
        kinds = {f"agrees {share} %": (0.0, share / 100) for share in (90, 70, 50, 0)}
    else:
        loops["drafts"] = Loop(model.core, drafting=Drafting(SuffixDrafting(), vocab_size=size))
    loops["lookup"] = Loop(model.core, drafting=Drafting(Lookup(), vocab_size=size))
    print("| trace | sequences | without | drafts | times | accepted | lookup | drafts / lookup |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, sequences in [(name, count) for name in (["edit"] if args.edit else kinds) for count in (1, 8)]:
        rates: dict[str, list[float]] = {engine: [] for engine in loops}
        drafted = accepted = 0
        for number in range(args.repeat):
            if args.edit:
                traces = [edit_trace(model.tokenizer, *args.edit)] * sequences
            else:
                traces = [copy_trace(100 * number + one, size, kinds[name][0]) for one in range(sequences)]
            agree = 1.0 if args.edit else kinds[name][1]
            for engine, loop in loops.items():
                rate, some, right = run(loop, model, traces, engine != "without", agree)
                rates[engine].append(rate)
                if engine == "drafts":
                    drafted, accepted = drafted + some, accepted + right
        times = [a / b for a, b in zip(rates["drafts"], rates["without"], strict=True)]
        better = [a / b for a, b in zip(rates["drafts"], rates["lookup"], strict=True)]
        print(
            f"| {name} | {sequences} | {median(rates['without']):.1f} | {median(rates['drafts']):.1f} "
            f"| {median(times):.2f} ({min(times):.2f}-{max(times):.2f}) | {accepted}/{drafted} "
            f"| {median(rates['lookup']):.1f} | {median(better):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

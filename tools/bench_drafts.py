"""Measure drafts: tokens per second with and without them, on texts that repeat their prompt more or less.

    python -m tools.bench_drafts MODEL.gguf                          # traces of random tokens, one sequence and eight
    python -m tools.bench_drafts MODEL.gguf --sequences 1            # of one alone
    python -m tools.bench_drafts MODEL.gguf --edit BEFORE AFTER      # a file, and what it became
    python -m tools.bench_drafts MODEL.gguf --draft SMALL.gguf       # a draft model, which agrees more or less often
    python -m tools.bench_drafts MODEL.gguf --plot drafts.svg        # the speeds, and times of steps of 1 to 16 tokens

The sampler is made to choose a trace, whatever the weights are. "copy 70 %" repeats a part of its prompt, and after
each token there is a chance that it leaves it: so that about 70 % of what is drafted is accepted. "copy nothing"
repeats none. A draft model is made to agree with a trace of new tokens at a share of the places: 90, 70, 50 and 0 %.
Each repetition runs the same trace without drafts, with them, and with prompt lookup as other libraries do it: what
stood behind the first place of the last 3 tokens, or else 2 or 1; always 10 of it. Another one is the first each time.
"""

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from difflib import SequenceMatcher
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

import mistral_portable as mp
from mistral_portable.bench import ModelEngine, measure, parse, prepare
from mistral_portable.engine.drafting import Drafting
from mistral_portable.engine.loop import Loop
from mistral_portable.engine.model_drafting import ModelDrafting
from mistral_portable.engine.request import Completion
from mistral_portable.engine.suffix_drafting import SuffixDrafting
from mistral_portable.tokenizer import Tokenizer
from tools.positive import positive

__all__ = ["Lookup", "Trace"]

_PROMPT, _ANSWER = 512, 256

KINDS = {
    "copy 90 %": (0.975, 1.0),
    "copy 70 %": (0.9, 1.0),
    "copy 50 %": (0.75, 1.0),
    "copy nothing": (0.0, 1.0),
    **{f"agrees {share} %": (0.0, share / 100) for share in (90, 70, 50, 0)},
}
"""Traces: the chance that a token goes on with what is copied, and the share of tokens that a draft model says, too."""


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

    def read(self, completions: Sequence[Completion], *, alone: bool) -> None:
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


def measured(
    loops: Mapping[str, Loop], model: mp.Model, name: str, sequences: int, repeat: int, edit: tuple[Path, Path] | None
) -> dict[str, list[float]]:
    """Run a trace on each engine in turn, print a row of the table, and return the tokens per second of each."""
    rates: dict[str, list[float]] = {engine: [] for engine in loops}
    drafted = accepted = 0
    stay, agree = KINDS.get(name, (1.0, 1.0))
    for number in range(repeat):
        if edit:
            traces = [edit_trace(model.tokenizer, *edit)] * sequences
        else:
            traces = [copy_trace(100 * number + one, model.config.vocab_size, stay) for one in range(sequences)]
        order = list(loops)[number % len(loops) :] + list(loops)[: number % len(loops)]  # none is always the first
        for engine in order:
            rate, some, right = run(loops[engine], model, traces, engine != "without", agree)
            rates[engine].append(rate)
            if engine == "drafts":
                drafted, accepted = drafted + some, accepted + right
    row = f"| {name} | {sequences} | {median(rates['without']):.1f} | {median(rates['drafts']):.1f} "
    row += f"| {_spread(ratios(rates, 'without'))} | {accepted} of {drafted} |"
    if "lookup" in rates:
        row += f" {median(rates['lookup']):.1f} | {_spread(ratios(rates, 'lookup'))} |"
    print(row, flush=True)
    return rates


def ratios(rates: Mapping[str, Sequence[float]], other: str) -> list[float]:
    """The speed with drafts, divided by another engine's of the same repetition."""
    return [own / its for own, its in zip(rates["drafts"], rates[other], strict=True)]


def _spread(figures: Sequence[float]) -> str:
    return f"{median(figures):.2f} ({min(figures):.2f} - {max(figures):.2f})"


def costs(model: mp.Model) -> list[float]:
    """How long steps of 1 to 16 tokens of one sequence take behind a prompt, all of whose logits are wanted, in times
    of one token's: medians of 8."""
    engine, times = ModelEngine(model), dict[int, list[float]]()
    for count in range(1, 17):
        measurement = parse(f"verify:{count}@{_PROMPT}", 1)
        prepare(engine, measurement, 8)
        times[count] = [measure(engine, measurement, 8) for _ in range(8)]
    return [median(some) / median(times[1]) for some in times.values()]


def plot(path: Path, costs: Sequence[float], speeds: Mapping[str, Mapping[int, float]]) -> None:
    """Draw what steps cost by their tokens, and the speed by the share of tokens that are right. speeds: by trace and
    number of sequences, in times of the speed without drafts."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    left.plot(range(1, 17), costs, marker="o")
    left.set(xlabel="tokens of a step", ylabel="time, of one token's", ylim=0)
    for sequences in next(iter(speeds.values())):
        shares = [int(name.split()[1]) if name.split()[1].isdecimal() else 0 for name in speeds]
        right.plot(shares, [some[sequences] for some in speeds.values()], marker="o", label=f"{sequences} sequences")
    right.axhline(1, color="grey", linewidth=0.8)
    right.set(xlabel="% of the tokens are right", ylabel="speed, of that without drafts", ylim=0)
    right.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--edit", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--draft", metavar="SMALL.gguf")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    parser.add_argument("--sequences", type=positive, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument("--repeat", type=positive, default=3)
    parser.add_argument("--threads", type=positive)
    args = parser.parse_args()
    model = mp.load(args.model, backend="numba", threads=args.threads, draft="off")
    size = model.config.vocab_size
    loops = {"without": Loop(model.core)}
    head, kinds = (
        "| trace | sequences | without | drafts | times | accepted |",
        [name for name in KINDS if "copy" in name],
    )
    if args.draft:
        small = mp.load(args.draft, backend="numba", threads=args.threads, draft="off", max_lanes=16)
        loops["drafts"] = Loop(model.core, drafting=Drafting(ModelDrafting(small.core), vocab_size=size))
        kinds = [name for name in KINDS if "agrees" in name]
    else:
        loops["drafts"] = Loop(model.core, drafting=Drafting(SuffixDrafting(), vocab_size=size))
        loops["lookup"] = Loop(model.core, drafting=Drafting(Lookup(), vocab_size=size))
        head += " lookup | drafts / lookup |"
    print(f"{head}\n{re.sub('[^|]+', ' --- ', head)}")
    speeds: dict[str, dict[int, float]] = {}
    for name in ["edit"] if args.edit else kinds:
        rates = {count: measured(loops, model, name, count, args.repeat, args.edit) for count in args.sequences}
        speeds[name] = {count: median(ratios(some, "without")) for count, some in rates.items()}
    if args.plot:
        found = costs(model)
        print("cost of 1, 2, 3 ... tokens:", *(f"{cost:.2f}" for cost in found))
        plot(args.plot, found, speeds)


if __name__ == "__main__":
    main()

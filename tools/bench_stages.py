"""Measure a model in stages beside the whole one, on the CPUs of this machine.

    python -m tools.bench_stages MODEL [--stages 2] [--threads N] [--sequences 1 8 16] [--repeat 5]

Prompts of 16 random tokens, answers of 24, greedy; whole and stages alternate, and their tokens must be the same.
threads: those of each stage, which then work at the same time; without it they take turns with all CPUs. Printed for
each number of sequences: medians of tokens/s and of the ratio of neighbouring runs, and the CPUs that each stage's
process kept busy (Linux).
"""

import argparse
import os
import random
import time
from collections.abc import Sequence
from multiprocessing import active_children
from pathlib import Path
from statistics import median

import mistral_portable as mp
from tools.positive import positive

_PROMPT, _ANSWER = 16, 24  # tokens


def cpu_seconds(process: int) -> float:
    """User's and system's time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(model: mp.Model, prompts: Sequence[Sequence[int]]) -> tuple[float, list[tuple[int, ...]]]:
    """Tokens/s, and the tokens."""
    begin = time.perf_counter()
    made = model.generate(prompts, max_tokens=_ANSWER, temperature=0, ignore_eos=True)
    return len(prompts) * _ANSWER / (time.perf_counter() - begin), [tuple(generation.tokens) for generation in made]


def main() -> None:
    """Print a line for each number of sequences."""
    parser = argparse.ArgumentParser(description="Measure a model in stages beside the whole one.")
    parser.add_argument("model")
    parser.add_argument("--stages", type=positive, default=2)
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--sequences", type=positive, nargs="+", default=[1, 8, 16])
    parser.add_argument("--repeat", type=positive, default=5)
    args = parser.parse_args()
    draw = random.Random(0)
    with (
        mp.load(args.model, max_context=1024, max_lanes=max(args.sequences), cache_bytes=0, draft="off") as whole,
        mp.load(
            args.model,
            stages=args.stages,
            threads=args.threads,
            max_context=1024,
            max_lanes=max(args.sequences),
            cache_bytes=0,
            draft="off",
        ) as staged,
    ):
        processes = [process.pid or 0 for process in sorted(active_children(), key=lambda process: process.name)]
        print(
            "| sequences | whole, tokens/s | stages, tokens/s | ratio | CPUs of each stage |\n|---:|---:|---:|---:|---|"
        )
        for count in args.sequences:
            ids = range(3, min(whole.config.vocab_size, 30_000))
            prompts = [draw.choices(ids, k=_PROMPT) for _ in range(count)]
            rates = []
            shares = []
            for model in (whole, staged):
                measure(model, prompts)
            for _ in range(args.repeat):
                one, expected = measure(whole, prompts)
                before, begin = [cpu_seconds(process) for process in processes], time.perf_counter()
                two, found = measure(staged, prompts)
                seconds = time.perf_counter() - begin
                shares.append([(cpu_seconds(pid) - was) / seconds for pid, was in zip(processes, before, strict=True)])
                assert found == expected
                rates.append((one, two))
            busy = ", ".join(f"{median(column):.2f}" for column in zip(*shares, strict=True))
            alone, cut = (median(column) for column in zip(*rates, strict=True))
            ratio = median(two / one for one, two in rates)
            print(f"| {count} | {alone:.1f} | {cut:.1f} | {ratio:.2f} | {busy} |", flush=True)


if __name__ == "__main__":
    main()

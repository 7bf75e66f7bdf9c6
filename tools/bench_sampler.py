"""Measure the sampler on the host: one row, and the rows of many sequences on one thread and on several.

    python -m tools.bench_sampler                             # a vocabulary of 131072, 16 rows
    python -m tools.bench_sampler --vocab 512 --rows 16 --repeat 200

Logits are normal with a standard deviation of 3. Each repetition measures the three ways one after the other, and each
way has its own samplers. A figure is the median of the repetitions, with the least: that of a machine at rest.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mistral_portable.bench import Spread
from mistral_portable.sampling import Sampler, SamplingParams, sample_rows
from tools.positive import positive

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {},
    "temperature, top_p": {"top_p": 0.9},
    "temperature, top_k, top_p": {"top_k": 40, "top_p": 0.95},
    "temperature, min_p": {"min_p": 0.05},
    "temperature, penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.1, "presence_penalty": 0.1},
    "temperature, logprobs": {"logprobs": 5},
}
"""Parameters by name; a temperature that is not given is 0.7."""

_PROMPT = 100  # tokens, which a repetition_penalty counts


def measure(settings: Mapping[str, Any], vocab: int, rows: int, repeats: int) -> list[Spread]:
    """Time one row by `Sampler.sample`, all rows by `sample_rows` on one thread, and on its own choice; in seconds."""
    params = [SamplingParams(seed=seed, **settings) for seed in range(rows)]
    logits = np.random.default_rng(0).normal(0, 3, (rows, vocab)).astype(np.float32)
    apart, one, several = ([Sampler(each, prompt_tokens=range(min(_PROMPT, vocab))) for each in params] for _ in "123")

    ways: tuple[Callable[[], object], ...] = (
        lambda: [sampler.sample(row) for sampler, row in zip(apart, logits, strict=True)],
        lambda: sample_rows(one, logits, threads=1),
        lambda: sample_rows(several, logits),
    )
    seconds: list[list[float]] = [[], [], []]
    for _ in range(repeats):
        for taken, way in zip(seconds, ways, strict=True):
            begin = time.perf_counter()
            way()
            taken.append(time.perf_counter() - begin)
    seconds[0] = [taken / rows for taken in seconds[0]]
    return [Spread.of(taken) for taken in seconds]


def table(vocab: int, rows: int, repeats: int) -> str:
    """Measure all SETTINGS; format them as a Markdown table."""
    lines = [
        f"| vocabulary {vocab} | one row | {rows} rows, one thread | {rows} rows |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, settings in SETTINGS.items():
        cells = (
            f"{spread.median * 1e3:.3g} ms ({spread.min * 1e3:.3g})"
            for spread in measure(settings, vocab, rows, repeats)
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench_sampler", description="Measure the sampler.")
    parser.add_argument("--vocab", type=positive, default=131072)
    parser.add_argument("--rows", type=positive, default=16)
    parser.add_argument("--repeat", type=positive, default=30)
    args = parser.parse_args()
    print(table(args.vocab, args.rows, args.repeat))


if __name__ == "__main__":
    main()

"""Measure this library's speed on one model, beside other engines; prints a Markdown section with tables.

Each repetition measures the engines one after the other, never two at once. The tables give tokens per second, seconds
and memory of each engine (median, least, most), the share of the machine's limit that this library reaches, and the
ratio to each peer. --record also writes the section into docs/benchmarks.md, docs/benchmarks.json and the plot.

    python -m tools.bench MODEL.gguf                              # this library alone
    python -m tools.bench MODEL.gguf prefill:512 decode:0 --peer llama.cpp
    python -m tools.bench MODEL.gguf --peer llama.cpp --peer transformers --record "7B Q4_0"
    python -m tools.bench MODEL.gguf prefill:512 decode:0 --isa avx2 --peer ik_llama.cpp=/opt/ik/bin/llama-bench
    python -m tools.bench MODEL.gguf prefill:512 --backend torch --dtype bfloat16 --peer numba --peer transformers
    python -m tools.bench FOLDER prefill:512 memory --backend mlx --peer mlx-lm --quantize none --quantize q4_0
    python -m tools.bench FOLDER generate:0 generate:0.7 --backend mlx --peer mlx-lm    # whole texts, at a temperature

Needs the extra bench (llama-cpp-python, matplotlib); build llama-cpp-python for your machine, or the comparison is
unfair: `CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python`. The peer mlx-lm needs
mlx-lm, and a folder or hub id with safetensors.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Container, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mistral_portable.bench import STANDARD, Measurement, obstacle, parse
from mistral_portable.errors import MistralPortableError
from mistral_portable.weights.quantize_on_read import QUANTIZABLE
from tools.bench_engines import PEERS, Setup, Worker
from tools.bench_generate import generated_per_second, temperature_of
from tools.bench_llama_bench import LlamaBench
from tools.bench_process import one_token, one_token_command
from tools.bench_report import machine, markdown, record, versions
from tools.bench_roofline import LIMITS, Work, kernels
from tools.positive import positive

OURS = "mistral_portable"
_ALL = ("process", *STANDARD, "kernels")
_WORDS = ("process", "memory", "kernels")
_BACKENDS = ("numba", "mlx", "torch")
_REST = 0.1  # seconds before each measurement: threads of the previous engine may spin a while before they sleep


def compare(
    setups: dict[str, Setup],
    measurements: list[Measurement],
    others: Container[str],
    repeats: int,
    generations: Sequence[tuple[int, float]] = (),
) -> dict[str, Any]:
    """Measure all engines; returns `rows` (figures by engine, one per repetition), `kernels`, and `builds`, the commits
    of programs.

    others: any of "process", "memory" and "kernels"; the last for the numba backend only. generations: pairs of tokens
    and temperature.
    """
    rows: list[dict[str, Any]] = []
    if "process" in others:  # first: later the engines hold memory that the machine may not have twice
        rows += _processes(setups, repeats)
    with ExitStack() as stack:
        ours = stack.enter_context(Worker(setups[OURS]))
        engines: dict[str, Worker | LlamaBench] = {
            name: ours if name == OURS else LlamaBench(setup) if setup.program else stack.enter_context(Worker(setup))
            for name, setup in setups.items()
        }
        for measurement in measurements:
            print(measurement.name, file=sys.stderr, flush=True)
            rows.append(_row(engines, ours, setups[OURS], measurement, repeats))
        rows += [_generation(engines, *generation, repeats) for generation in generations]
        if "memory" in others:
            peaks = {name: [engine.peak_memory() / 1e9] for name, engine in engines.items()}
            rows.append({"name": "peak memory", "unit": "GB", "figures": peaks})
        known = "kernels" in others and setups[OURS].backend == "numba"
        return {
            "rows": rows,
            "kernels": ours.run(kernels, setups[OURS].threads) if known else [],
            "builds": {name: e.build for name, e in engines.items() if isinstance(e, LlamaBench) and e.build},
        }


def _row(
    engines: dict[str, Worker | LlamaBench], ours: Worker, setup: Setup, measurement: Measurement, repeats: int
) -> dict[str, Any]:
    """Measure the engines that take the measurement, in turn, `ours` with its share of the machine's limit."""
    if reason := ours.run(obstacle, measurement, repeats):
        return {"name": measurement.name, "skipped": reason}
    able = {name: engine for name, engine in engines.items() if engine.prepare(measurement, repeats)}
    figures: dict[str, list[float]] = {name: [] for name in able}
    shares: list[float] = []
    for _ in range(repeats):
        for name, engine in able.items():
            time.sleep(_REST)
            seconds = engine.seconds(measurement, repeats)
            figures[name].append(measurement.rate(seconds))
            if engine is ours and setup.backend in LIMITS:
                least = Work.of(setup.model).seconds(measurement, ours.run(LIMITS[setup.backend], setup.threads))
                shares.append(least / seconds)
    return {"name": measurement.name, "unit": "tokens/s", "figures": figures, "shares": shares}


def _generation(
    engines: dict[str, Worker | LlamaBench], tokens: int, temperature: float, repeats: int
) -> dict[str, Any]:
    """Measure whole texts of the engines that generate, in turn; one before, to warm up, does not count."""
    figures: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for name, engine in engines.items():
            time.sleep(_REST)
            rate = None if isinstance(engine, LlamaBench) else engine.run(generated_per_second, tokens, temperature)
            if repeat and rate is not None:
                figures.setdefault(name, []).append(rate)
    return {"name": f"generate, temperature {temperature:g}", "unit": "tokens/s", "figures": figures, "shares": []}


def _processes(setups: dict[str, Setup], repeats: int) -> list[dict[str, Any]]:
    able = {name: setup for name, setup in setups.items() if one_token_command(setup)}
    seconds: dict[str, list[float]] = {name: [] for name in able}
    memory: dict[str, list[float]] = {name: [] for name in able}
    for _ in range(repeats):
        for name, setup in able.items():
            wall, peak = one_token(setup)
            seconds[name].append(wall)
            memory[name].append(peak / 1e9)
    return [
        {"name": "process, one token", "unit": "s", "figures": seconds},
        {"name": "process, peak memory", "unit": "GB", "figures": memory},
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description="Measure this library on one model, beside other engines."
    )
    parser.add_argument("model", help="a .gguf file; with no peer but transformers, any model")
    parser.add_argument(
        "what",
        nargs="*",
        help=f"any of {' '.join(_ALL)} memory generate:TEMPERATURE, with any numbers; default: all but the last two",
    )
    parser.add_argument(
        "--peer",
        type=_peer,
        metavar="PEER",
        action="append",
        default=[],
        help=f"another engine ({', '.join(PEERS)}), another backend of this library ({', '.join(_BACKENDS)}), or "
        "NAME=PATH of a llama-bench; may be given several times",
    )
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--dtype", help="dtype of this library's arithmetic; default: the backend's choice")
    parser.add_argument("--device", help="device of the torch backend and of the peer transformers, such as cuda")
    parser.add_argument("--isa", help="instruction set of the numba backend, such as avx2; default: the machine's best")
    parser.add_argument("--threads", type=positive, help="CPU threads; default: all CPUs, for MLX its own choice")
    parser.add_argument(
        "--quantize",
        choices=["none", *QUANTIZABLE],
        action="append",
        default=[],
        help="quantize on reading; given several times: one comparison for each",
    )
    parser.add_argument("--repeat", type=positive, default=5)
    parser.add_argument("--tokens", type=positive, default=32, help="tokens to decode in one repetition")
    parser.add_argument(
        "--record",
        metavar="TITLE",
        help="write the result into docs/benchmarks.md, in place of the last one of that title",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document a comparison, not Markdown")
    args = parser.parse_args()
    what = args.what or list(_ALL)
    for quantize in dict.fromkeys(args.quantize or ["none"]):
        try:
            _compare_and_print(args, what, None if quantize == "none" else quantize)
        except MistralPortableError as error:
            parser.error(str(error))


def _compare_and_print(args: argparse.Namespace, what: list[str], quantize: str | None) -> None:
    model = str(Path(args.model).resolve()) if Path(args.model).exists() else args.model
    generations = [(args.tokens, temperature) for text in what if (temperature := temperature_of(text)) is not None]
    steps = [text for text in what if text not in _WORDS and temperature_of(text) is None]
    measurements = [parse(text, args.tokens) for text in steps]
    lanes = max([1, *(measurement.sequences for measurement in measurements)])
    own_threads = args.backend == "mlx" or args.device not in (None, "cpu")
    threads = args.threads or (None if own_threads else os.cpu_count())
    ours = Setup(None, model, args.backend, threads, lanes, quantize, args.dtype, args.device, args.isa)
    setups = {OURS: ours} | {name: _beside(ours, name, program) for name, program in args.peer}
    result = compare(setups, measurements, what, args.repeat, generations)
    title = args.record or Path(model).name
    run = {
        "title": f"{title}, {quantize}" if quantize else title,
        "command": shlex.join(["python", "-m", "tools.bench", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions([args.backend, *(name for name, program in args.peer if program is None)])
        | result.pop("builds"),
        "engines": list(setups),
        **result,
    }
    print(json.dumps(run) if args.json else markdown(run))
    if args.record:
        record(run)


def _peer(text: str) -> tuple[str, str | None]:
    """A peer's name, and the path of its program: `llama.cpp`, or `ik=/opt/ik/llama-bench`."""
    name, given, program = text.partition("=")
    if given and name and os.access(program, os.X_OK):
        return name, str(Path(program).resolve())
    if not given and name in (*PEERS, *_BACKENDS):
        return name, None
    known = ", ".join([*PEERS, *_BACKENDS])
    raise argparse.ArgumentTypeError(f"{text!r} is none of {known}, and no NAME=PATH of a program")


def _beside(ours: Setup, peer: str, program: str | None) -> Setup:
    """The setup of a peer: the same model; another backend of this library chooses its own dtype and device."""
    if program or peer in PEERS:
        return replace(ours, peer=peer, program=program)
    return replace(ours, backend=peer, dtype=None, device=None, threads=ours.threads if peer != "mlx" else None)


if __name__ == "__main__":
    main()

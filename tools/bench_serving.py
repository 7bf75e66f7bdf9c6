"""Measure this library with many callers, beside llama.cpp's server; prints a Markdown section with a table.

Each repetition plays the same load against one engine and then the other. Each load has its own tokens, so that no
engine finds in its cache what an earlier one has left there. --record also writes the section into docs/benchmarks.md,
where the loads are described, docs/benchmarks.json and a plot.

    python -m tools.bench_serving MODEL.gguf                              # this library alone
    python -m tools.bench_serving MODEL.gguf mix callers --llama-server PATH --repeat 5 --record "7B Q4_K_M, serving"
    python -m tools.bench_serving MODEL.gguf stream callers system --http     # over HTTP beside in its process

The server comes with the sources of llama-cpp-python; build it for your machine, or the comparison is unfair:

    pip download --no-binary llama-cpp-python --no-deps llama-cpp-python      # and unpack; then in vendor/llama.cpp:
    cmake -B build -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
    cmake --build build --target llama-server
"""

import argparse
import asyncio
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from mistral_portable.bench import Engine, Measurement, ModelEngine, measure, prepare
from mistral_portable.engine import Model
from mistral_portable.errors import MistralPortableError
from mistral_portable.weights import open_checkpoint
from tools.bench_engines import Setup, Worker
from tools.bench_llama_server import LlamaServer, llama_server_version
from tools.bench_loads import Load, Mix, intruder
from tools.bench_our_server import OurServer
from tools.bench_play import Reply, Trace, play
from tools.bench_report import machine, markdown, record, versions
from tools.bench_scenarios import Figures, Scenario, scenarios
from tools.positive import positive

__all__ = ["HTTP", "OURS", "PEER", "compare"]

OURS = "mistral_portable"
HTTP = "mistral_portable serve"
PEER = "llama-server"
_LANES = 8
_REST = 0.5  # seconds before each load: threads of the previous engine may still spin, and cancelled requests end


def compare(
    setup: Setup, program: str | None, chosen: Mapping[str, Scenario], repeats: int, *, http: bool = False
) -> list[dict[str, Any]]:
    """Play every scenario `repeats` times against this library in its process, with `http` also against its server,
    and against a llama-server if there is its program.

    Returns rows for `tools/bench_report.py`: name, unit, and figures by engine, one per repetition.
    """
    vocab = open_checkpoint(setup.model).config.vocab_size
    first = intruder(2, 2, 600, 2, vocab, seed=0)
    loads = {
        name: [some.make(vocab=vocab, seed=(*name.encode(), number)) for number in range(repeats)]
        for name, some in chosen.items()
    }
    with ExitStack() as stack:
        worker = stack.enter_context(Worker(setup))
        engines: dict[str, Callable[[Load], list[Trace]]] = {OURS: partial(worker.run, serve)}
        if http:
            ours = stack.enter_context(OurServer(setup)).ask
            engines[HTTP] = lambda load: asyncio.run(play(load, ours))
        if program is not None:
            room = max(load.room for load in chain([first], *loads.values()))
            threads = setup.threads or os.cpu_count() or 1
            server = LlamaServer(program, setup.model, slots=setup.lanes, room=room, threads=threads)
            ask = stack.enter_context(server).ask
            engines[PEER] = lambda load: asyncio.run(play(load, ask))
        for run in engines.values():  # the first load takes longer: ours is read, and its kernels are compiled
            run(first)
        rows: dict[str, dict[str, Any]] = {}
        for name, scenario in chosen.items():
            for number, load in enumerate(loads[name]):
                print(f"{name}, {number + 1} of {repeats}", file=sys.stderr, flush=True)
                for engine, run in engines.items():
                    time.sleep(_REST)
                    figures = dict(scenario.figures(run(load)))
                    if engine == OURS and scenario.alone is not None:
                        figures |= _times_alone(worker, figures, *scenario.alone)
                    _add(rows, name, engine, figures)
        return list(rows.values())


def _times_alone(worker: Worker, figures: Figures, measurement: Measurement, figure: str) -> Figures:
    """How many times as long as the bare steps of `measurement` a figure in seconds is."""
    seconds, unit = figures[figure]
    assert unit == "s"
    return {f"{figure} / {measurement.name}": (seconds / worker.run(bare, measurement), "times")}


def _add(rows: dict[str, dict[str, Any]], scenario: str, engine: str, figures: Figures) -> None:
    for figure, (value, unit) in figures.items():
        name = f"{scenario}: {figure}"
        row = rows.setdefault(name, {"name": name, "unit": unit, "figures": {}})
        row["figures"].setdefault(engine, []).append(value)


def serve(engine: Engine, load: Load) -> list[Trace]:
    """Play a load against a model of this library, in its process."""
    assert isinstance(engine, ModelEngine)
    return asyncio.run(play(load, partial(_ask, engine.model)))


def bare(engine: Engine, measurement: Measurement) -> float:
    """Take the measurement once, without requests; its seconds."""
    prepare(engine, measurement, 1)
    seconds = measure(engine, measurement, 1)
    engine.reset(0, 0)  # the lanes are the requests' again
    return seconds


async def _ask(model: Model, prompt: Sequence[int], answer: int, made: Callable[[int], None]) -> Reply:
    """`Model.astream`, but for tokens without text, which it does not show: here each one counts."""
    taken = model.answer(prompt, None, max_tokens=answer, temperature=0, ignore_eos=True)
    async with aclosing(model.loop.arun([taken.completion])) as ready:
        count = 0
        async for _ in ready:
            taken.take()
            count += 1
            made(count)
    generation = taken.generation
    return Reply(generation.tokens, generation.timings.cached_tokens)


def main() -> None:
    """Run the command line."""
    names = tuple(scenarios(Mix(1, 1)))
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench_serving",
        description="Measure this library with many callers, beside llama.cpp's server.",
    )
    parser.add_argument("model", help="a .gguf file; without --llama-server, any model")
    parser.add_argument("what", nargs="*", help=f"any of {' '.join(names)}; default: all")
    parser.add_argument("--llama-server", metavar="PATH", help="llama.cpp's server, to compare with")
    parser.add_argument("--http", action="store_true", help="also ask this library over HTTP, by its own server")
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="CPU threads; default: all CPUs")
    parser.add_argument("--requests", type=positive, default=24, help="requests of the mix")
    parser.add_argument("--rate", type=float, default=0.2, help="requests of the mix that arrive in a second")
    parser.add_argument("--repeat", type=positive, default=5)
    parser.add_argument(
        "--record",
        metavar="TITLE",
        help="write the result into docs/benchmarks.md, in place of the last one of that title",
    )
    args = parser.parse_args()
    if unknown := set(args.what) - set(names):
        parser.error(f"{' '.join(sorted(unknown))}: not any of {' '.join(names)}")
    try:
        _compare_and_print(args)
    except MistralPortableError as error:
        parser.error(str(error))


def _compare_and_print(args: argparse.Namespace) -> None:
    model = str(Path(args.model).resolve()) if Path(args.model).exists() else args.model
    known = scenarios(Mix(args.requests, args.rate))
    engines = [*([HTTP] if args.http else []), OURS, *([PEER] if args.llama_server else [])]
    chosen = {name: known[name] for name in args.what or known}
    setup = Setup(None, model, args.backend, args.threads, _LANES)
    command = shlex.join(["python", "-m", "tools.bench_serving", *sys.argv[1:]])
    run: dict[str, Any] = {
        "title": args.record or f"{Path(model).name}, serving",
        "command": command.replace(args.llama_server or PEER, PEER),  # where it lies on this machine is nobody's matter
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions([args.backend]),
        "engines": engines,  # the first one is compared with the others
        "rows": compare(setup, args.llama_server, chosen, args.repeat, http=args.http),
        "kernels": [],
    }
    if args.llama_server:
        run["versions"][PEER] = llama_server_version(args.llama_server)
    print(markdown(run))
    if args.record:
        record(run)


if __name__ == "__main__":
    main()

"""`bench`: measure the speed and memory of a model on this machine."""

import dataclasses
import json
import time
from typing import Annotated, Any

import typer

from mistral_portable.bench import (
    STANDARD,
    Measurement,
    ModelEngine,
    Spread,
    is_measurement,
    measure,
    obstacle,
    parse,
    prepare,
)
from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.groups import grouped
from mistral_portable.cli.loading import loader, working
from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import JsonOption, ModelArgument, NamedOption
from mistral_portable.cli.output import size
from mistral_portable.cli.ranges import with_range
from mistral_portable.cli.table import print_table
from mistral_portable.engine import Model
from mistral_portable.errors import InputError

__all__ = ["bench"]

_PROMPT = 16  # tokens of the prompt for the time to the first token


@grouped
def bench(
    *,
    model: ModelArgument = None,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WHAT]...",
            help="Any of prefill:TOKENS, prefill:TOKENS@DEPTH, decode:DEPTH, batch:SEQUENCES, batch:SEQUENCES@DEPTH, "
            "verify:TOKENS, verify:TOKENS@DEPTH (a step with a draft); by default " + ", ".join(STANDARD) + ".",
            show_default=False,
        ),
    ] = None,
    name: NamedOption = None,
    tokens: Annotated[int, typer.Option(metavar="N", **with_range("Tokens to decode in one repetition.", 1))] = 32,
    repeat: Annotated[int, typer.Option(metavar="N", **with_range("Repetitions.", 1))] = 5,
    as_json: JsonOption = False,
    options: ModelOptions,
    debug: DebugOption = False,
) -> None:
    """Measure a model's speed: tokens per second of prompts, of decoding at a depth, and of sequences together.

    Tokens are random. Also shown: the seconds to load the model and to its first token, the peak memory of all of it,
    and at the end the bytes of the key/value cache and of the buffers kept between steps (scratch).
    """
    if name is not None or (model is not None and is_measurement(model)):
        model, what = name, [word for word in (model, *(what or ())) if word is not None]
    model = model or "tiny"
    try:
        measurements = [parse(text, tokens) for text in what or STANDARD]
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="'WHAT'") from error
    lanes = max(measurement.sequences for measurement in measurements)
    with loader(model, options, max_lanes=lanes)() as loaded:
        measurements = [parse(text, tokens, loaded.manager.spec.max_chunk) for text in what or STANDARD]
        first_token_s = _first_token(loaded)
        with working(f"{loaded.backend} on {model}") as progress:
            engine, rows = ModelEngine(loaded), []
            for measurement in measurements:
                progress(measurement.name)
                rows.append(_row(engine, measurement, repeat))
        report = {
            "model": loaded.source,
            "backend": loaded.backend,
            "precision": dataclasses.asdict(loaded.program.precision),
            "load_s": loaded.load_s,
            "first_token_s": first_token_s,
            "peak_memory_bytes": engine.peak_memory_bytes,
            "cache_bytes": loaded.program.cache_bytes,
            "scratch_bytes": loaded.program.scratch_bytes,
            "measurements": rows,
        }
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report)


def _first_token(model: Model) -> float:
    """Seconds from a loaded model to its first token, including whatever is deferred to the first step."""
    begin = time.perf_counter()
    model.generate([1] * min(_PROMPT, model.max_context), max_tokens=1, temperature=0)
    return time.perf_counter() - begin


def _row(engine: ModelEngine, measurement: Measurement, repeats: int) -> dict[str, Any]:
    if reason := obstacle(engine, measurement, repeats):
        return {"name": measurement.name, "skipped": reason}
    prepare(engine, measurement, repeats)
    seconds = [measure(engine, measurement, repeats) for _ in range(repeats)]
    rates = Spread.of([measurement.rate(duration) for duration in seconds])
    return {"name": measurement.name, "seconds": seconds, "tokens_per_s": dataclasses.asdict(rates)}


def _print(report: dict[str, Any]) -> None:
    numbers = ["tokens/s", "least", "most"]
    table = []
    for row in report["measurements"]:
        figures = [f"{row['tokens_per_s'][name]:.1f}" for name in ("median", "min", "max")] if "seconds" in row else []
        table.append([row["name"], *(figures or [""] * 3), row.get("skipped", "")])
    print_table(["", *numbers, ""], table, right=numbers)
    precision = [f"{name} {value}" for name, value in report["precision"].items() if value]
    typer.echo(f"{report['backend']}: {', '.join(precision)}")
    memory, scratch = report["peak_memory_bytes"], report["scratch_bytes"]  # 0: not known
    typer.echo(
        f"loaded in {report['load_s']:.2f} s, first token after {report['first_token_s']:.2f} s"
        + (f", memory {size(memory)}" if memory else "")
        + f", cache {size(report['cache_bytes'])}"
        + (f", scratch {size(scratch)}" if scratch else "")
    )

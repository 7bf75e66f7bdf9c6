"""Commands in stages for a machine that is lent for minutes at a time: each ends within a limit, and its row is kept.

Rows are JSON, one a line, in FOLDER/rows.jsonl, written as soon as a stage ends. Begun again, a run goes on behind the
stages that have passed; those that failed or ran out of time are tried again, and so are those whose command is another
one, as of a dry run before, or with another model.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["LIMIT_S", "Row", "Stage", "python", "results", "run_stages", "tests"]

LIMIT_S = 480
"""Seconds after which a stage is ended."""

_SHORTEST_S = 30  # a stage is not begun with less time left
_KEPT = 4000  # characters of a stage's output in its row


@dataclass(frozen=True)
class Stage:
    """A command. gate: a stage of answers: after one that failed no stage without a gate is begun, since wrong answers
    have no speed. A command whose output is one JSON document has it in its row."""

    name: str
    command: Sequence[str]
    gate: bool = False


@dataclass(frozen=True)
class Row:
    """The outcome of a stage. status: "passed", "failed" or "out of time". result: the JSON that it printed, if it
    did. output: the end of its output otherwise."""

    stage: str
    status: str
    seconds: float
    command: str
    result: Any = None
    output: str = ""


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """A command that runs a module with this Python."""
    return (sys.executable, "-m", module, *arguments)


def tests(*arguments: str) -> tuple[str, ...]:
    """A command that runs tests in one process: all share the device."""
    return python("pytest", *arguments, "-n", "0")


def results(rows: Path, stages: Sequence[Stage]) -> dict[str, Any]:
    """The JSON documents of the stages that have passed with the command that they have now, the last one of each, by
    name."""
    commands = {stage.name: _line(stage) for stage in stages}
    return {
        row["stage"]: row["result"]
        for row in _read(rows)
        if row["status"] == "passed" and commands.get(row["stage"]) == row["command"]
    }


def _line(stage: Stage) -> str:
    return " ".join(stage.command)


def _read(rows: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file. A last line that was cut off does not count."""
    for line in rows.read_text().splitlines() if rows.exists() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    environment: Mapping[str, str],
    within: float | None = None,
    limit: float = LIMIT_S,
) -> bool:
    """Run the stages that have not passed yet; whether all have. within: seconds for all of them, None: no limit."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, end = folder / "rows.jsonl", None if within is None else time.monotonic() + within
    done, failed = results(rows, stages), list[str]()
    for number, stage in enumerate(stages, 1):
        if stage.name in done:
            continue
        if failed and not stage.gate:
            print(f"not begun: {stage.name}, because of {', '.join(failed)}", file=sys.stderr)
            continue
        left = limit if end is None else min(limit, end - time.monotonic())
        if left < min(_SHORTEST_S, limit):
            print(f"time is over before {stage.name}: begin again to go on", file=sys.stderr)
            return False
        print(f"{number} of {len(stages)}: {stage.name}", file=sys.stderr, flush=True)
        row = _run(stage, environment, left)
        _append(rows, row)
        print(f"  {row.status}, {row.seconds:.0f} s", file=sys.stderr, flush=True)
        if row.status != "passed":
            print(row.output, file=sys.stderr, flush=True)
            if stage.gate:
                failed.append(stage.name)
    return {stage.name for stage in stages} <= results(rows, stages).keys()


def _run(stage: Stage, environment: Mapping[str, str], limit: float) -> Row:
    begin = time.monotonic()
    process = subprocess.Popen(
        stage.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,  # so that its children end with it
    )
    try:
        out, error = process.communicate(timeout=limit)
        status = "passed" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, error = process.communicate()
        status = "out of time"
    seconds, command = round(time.monotonic() - begin, 2), _line(stage)
    try:
        return Row(stage.name, status, seconds, command, json.loads(out), error[-_KEPT:] if status != "passed" else "")
    except json.JSONDecodeError:
        return Row(stage.name, status, seconds, command, None, (out + error)[-_KEPT:])


def _append(rows: Path, row: Row) -> None:
    """Write a line. One that was cut off before stays a line of its own."""
    begun = rows.exists() and not rows.read_text().endswith("\n") and rows.stat().st_size > 0
    with rows.open("a") as file:
        file.write(("\n" if begun else "") + json.dumps(asdict(row)) + "\n")

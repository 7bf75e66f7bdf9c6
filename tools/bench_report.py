"""Write docs/benchmarks.md and its plots from docs/benchmarks.json, for `--record`. Not a command.

Used by `tools/bench.py` and `tools/bench_serving.py`.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from mistral_portable.bench import Spread

__all__ = ["machine", "markdown", "plot", "ratios", "record", "versions"]

DOCS = Path(__file__).parent.parent / "docs"

_INTRO = """# Benchmarks

Written by `tools/bench.py --record` and `tools/bench_serving.py --record`; the figures of every repetition are in
[benchmarks.json](benchmarks.json).

Each engine runs in a process of its own, with the same file, loaded once. A repetition measures one engine after the
other while the rest sleep, so other load on the machine slows all of them alike. A figure is the median of the
repetitions, with the least and the most; "times" is the ratio within one repetition, this library's figure divided by
the other's (for times, memory and tokens computed the inverse): above 1, this library is better.

`tools/bench.py` measures steps:

- `prefill:N`: tokens per second of a prompt of N tokens, 512 in a step; `prefill:N@D`: after D tokens. Repetitions at a
  depth continue where the one before ended.
- `decode:N`: tokens per second after N tokens, one at a time. llama.cpp ignores the window of `llama` files, so
  at greater depths reads more keys and values than the model needs.
- `batch:N`: tokens per second of N sequences together, empty at first; `batch:N@D`: of D tokens each at first.
- process: a fresh process that generates one token with a context of 4096; a llama-bench reads 5 tokens and generates
  one, in a context of 6.
- peak memory: after all measurements of a section; for MLX what it has allocated, else the process's.
- of limit: the least time that the work can take, divided by the time it took. The work is to read the weights once in
  every step, and the visible keys and values as float16, or to multiply 8-bit numbers, whichever takes longer at the
  speeds that the machine had in the same repetition; on torch, at the speeds of a copy and of a large matrix product.

`--isa avx2` (or `avx_vnni`, `avx512_vnni`, ...) restricts this library to an instruction set. A peer is restricted when
it is built: for AVX2 on any x86 machine, llama.cpp with `-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON
-DGGML_BMI2=ON`. `--peer NAME=PATH` measures the llama-bench at a path, of llama.cpp, of ik_llama.cpp, or a script that
calls one with more options. Each of its repetitions is a process, which loads the model and warms up before measuring.
It has no measurement for `batch` and `verify`, and ik_llama.cpp's none for `prefill:N@D`.

`tools/bench_serving.py` plays loads of greedy requests against this library (in its process; "mistral_portable serve":
over HTTP) and llama-server (over HTTP, with its defaults), each with 8 sequences at a time and the same threads. Every
token counts when its request's consumer has it; a first token, from the moment when its request should begin. Each
repetition has tokens of its own, so nothing is cached from the one before; "cached" are prompt tokens that the engine
did not compute.

- mix: requests arrive by a Poisson process; prompts of 16, 64, 256 or 1,024 tokens, half of them behind one of three
  common beginnings of 256; answers of 8, 32 or 128 tokens.
- callers: 8 requests at once, of 1 prompt token and 64 answered; compared with the bare steps of `batch:8`.
- turn: a chat of 4,000 tokens and an answer of 16, then 30 new tokens behind both. Its first token is compared with
  `prefill:30@4016`, which reads 30 tokens behind a full cache; turn-between: another such chat runs before them.
- stream: one request of 1 prompt token and 64 answered.
- sharers: 8 requests at once, whose prompts share 2,000 tokens and have 50 of their own: of 16,400 tokens 2,400 must be
  computed.
- system: 8 requests at once, whose prompts share 1,000 tokens and have 50 of their own; answers of 64.
- intruder: a prompt of 8,000 arrives while 4 sequences decode; the times between their tokens, before and meanwhile.

Weights are random (`tools/make_random_gguf.py`): speed and memory do not depend on them.
"""

_PLOTS = {"llama.cpp": "benchmarks.svg", "llama-server": "serving.svg"}
"""Files by the peer that a plot compares with."""

_LINEAR = 20  # ratios up to which an axis is linear; where requests queue up, they may reach hundreds


def machine() -> dict[str, Any]:
    """Describe this machine: cpu, cores, memory_gb, system."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": platform.platform(),
    }


def _cpu() -> str:
    if sys.platform == "darwin":  # "Apple M4 Pro", where `platform` says "arm"
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


_PACKAGES: dict[str, tuple[str, ...]] = {
    "reference": (),
    "numba": ("numba", "llvmlite"),
    "mlx": ("mlx",),
    "torch": ("torch",),
    "mlx-lm": ("mlx-lm",),
    "llama.cpp": ("llama-cpp-python",),
    "transformers": ("transformers", "torch"),
}


def versions(engines: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of the packages that the engines compute with.

    engines: names of backends of this library and of peers.
    """
    packages = [package for engine in engines for package in _PACKAGES[engine]]
    found = {package: version(package) for package in ["mistral-portable", "numpy", *packages]}
    return {"python": platform.python_version()} | found


def ratios(row: dict[str, Any], ours: str, peer: str) -> Spread | None:
    """How many times better `ours` is, by repetition (above 1: better); None for shares, and if one has no figures."""
    figures = row.get("figures", {})
    if ours not in figures or peer not in figures or row["unit"] == "%":
        return None
    pairs = zip(figures[ours], figures[peer], strict=True)
    return Spread.of([a / b if row["unit"] == "tokens/s" else b / a for a, b in pairs])


def markdown(run: dict[str, Any]) -> str:
    """Format a run as a section: the machine and versions, the command, and the tables."""
    on, (ours, *peers) = run["machine"], run["engines"]
    limits = any(row.get("shares") for row in run["rows"])
    columns = ["", ours, *(["of limit"] if limits else []), *(column for peer in peers for column in (peer, "times"))]
    parts = [
        f"## {run['title']}",
        f"{run['date']}, {on['cpu']}, {on['cores']} cores, {on['memory_gb']} GB, {on['system']}; "
        + ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        + ".",
        f"```\n{run['command']}\n```",
        _table(columns, [list(_cells(row, ours, peers, limits)) for row in run["rows"]]),
    ]
    parts += [f"{row['name']} was skipped: {row['skipped']}." for row in run["rows"] if "skipped" in row]
    if run["kernels"]:
        rows = [[name, f"{_short(value)} {unit}", f"{share:.0f}%"] for name, value, unit, share in run["kernels"]]
        parts.append(_table(["kernel", "", "of limit"], rows))
    return "\n\n".join(parts) + "\n"


def _cells(row: dict[str, Any], ours: str, peers: Sequence[str], limits: bool) -> Iterator[str]:
    yield row["name"]
    figures = row.get("figures", {})
    yield _figure(figures.get(ours), row.get("unit", ""))
    if limits:
        yield f"{median(row['shares']):.0%}" if row.get("shares") else ""
    for peer in peers:
        yield _figure(figures.get(peer), row.get("unit", ""))
        times = ratios(row, ours, peer)
        yield f"**{times.median:.2f}** ({times.min:.2f}-{times.max:.2f})" if times else ""


def _figure(figures: Sequence[float] | None, unit: str) -> str:
    if not figures:
        return ""
    spread = Spread.of(figures)
    return f"{_short(spread.median)} {unit} ({_short(spread.min)}-{_short(spread.max)})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def record(run: dict[str, Any], docs: Path = DOCS) -> None:
    """Replace the recorded run of the same title, and write the data, the page and the plots again."""
    data = docs / "benchmarks.json"
    runs = {old["title"]: old for old in json.loads(data.read_text())} if data.exists() else {}
    runs[run["title"]] = run
    data.write_text(json.dumps(list(runs.values()), indent=1) + "\n")
    for peer, file in _PLOTS.items():
        plot(list(runs.values()), peer, docs / file)
    images = [f"![Ratio to {peer}'s figure]({file})\n" for peer, file in _PLOTS.items() if (docs / file).exists()]
    (docs / "benchmarks.md").write_text("\n".join([_INTRO, *images, *map(markdown, runs.values())]))


def plot(runs: Sequence[dict[str, Any]], peer: str, path: Path) -> None:
    """Draw a panel for each run with this peer: the ratio to its figure, with the least and the most."""
    runs = [run for run in runs if peer in run["engines"]]
    if not runs:
        return

    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"  # the same figures give the same file
    from matplotlib import pyplot

    height = max(4.5, *(0.3 * len(run["rows"]) for run in runs))
    width = max(4, *(2 + 0.1 * len(row["name"]) for run in runs for row in run["rows"]))
    figure, panels = pyplot.subplots(1, len(runs), figsize=(1 + width * len(runs), height), squeeze=False)
    for run, axes in zip(runs, panels[0], strict=True):
        found = [(row["name"], ratios(row, run["engines"][0], peer)) for row in reversed(run["rows"])]
        bars = {name: spread for name, spread in found if spread}
        middles = [spread.median for spread in bars.values()]
        below = [spread.median - spread.min for spread in bars.values()]
        above = [spread.max - spread.median for spread in bars.values()]
        axes.barh(list(bars), middles, xerr=[below, above], color="#4c78a8", ecolor="#777777", capsize=2)
        if max(middles, default=0) > _LINEAR:
            axes.set_xscale("log")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(run["title"])
        axes.set_xlabel(f"times as good as {peer}")
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})

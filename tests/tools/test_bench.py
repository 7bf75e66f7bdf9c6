"""The comparison: engines in processes of their own, ratios, the least time of the work, and the page."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mistral_portable.bench import Engine, Spread, measure, parse, prepare
from mistral_portable.boundary.registry import select
from mistral_portable.errors import InputError
from tools.bench import OURS, compare, main
from tools.bench_engines import Setup, Worker
from tools.bench_generate import generated_per_second, temperature_of
from tools.bench_process import one_token
from tools.bench_report import machine, markdown, plot, ratios, record, versions
from tools.bench_roofline import Limits, Work

TINY = Setup(None, "tiny", "reference", threads=1, lanes=2)
RUN: dict[str, Any] = {
    "title": "Some model",
    "command": "python -m tools.bench model.gguf",
    "date": "2026-01-31",
    "machine": {"cpu": "A CPU", "cores": 2, "memory_gb": 25, "system": "Linux"},
    "versions": {"python": "3.11.7"},
    "engines": ["ours", "theirs"],
    "rows": [
        {"name": "process", "unit": "s", "figures": {"ours": [2.0, 3.0, 4.0], "theirs": [4.0, 4.0, 6.0]}},
        {
            "name": "decode:0",
            "unit": "tokens/s",
            "figures": {"ours": [10.0, 12.0, 11.0], "theirs": [5.0, 3.0, 5.5]},
            "shares": [0.9, 0.8, 0.7],
        },
        {"name": "decode:9", "skipped": "the context is short"},
    ],
    "kernels": [["int4 GEMV", 36.04, "GB/s", 97.6]],
}


def test_engines_alternate_in_their_own_processes() -> None:
    setups = {OURS: TINY, "again": TINY}
    result = compare(setups, [parse("prefill:4", 1), parse("decode:99999", 1)], ["process"], 2)
    seconds, memory, prefill, skipped = result["rows"]
    assert (seconds["unit"], memory["unit"], prefill["unit"]) == ("s", "GB", "tokens/s")
    for row in (seconds, memory, prefill):
        assert [len(figures) for figures in row["figures"].values()] == [2, 2]
        assert all(figure > 0 for figures in row["figures"].values() for figure in figures)
    assert "positions" in skipped["skipped"]
    assert result["kernels"] == []


def test_a_worker_loads_once_and_passes_errors_on() -> None:
    with Worker(TINY) as worker:
        measurement = parse("batch:2", 1)
        worker.run(prepare, measurement, 1)
        assert worker.run(measure, measurement, 1) > 0
        with pytest.raises(Exception, match="lanes"):
            worker.run(prepare, parse("batch:3", 1), 1)


@pytest.mark.parametrize("words", ["--repeat 0", "--threads -1", "--tokens many"])
def test_counts_below_1_are_refused(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    option, value = words.split()
    monkeypatch.setattr("sys.argv", ["bench", "tiny", option, value])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err.endswith(f"argument {option}: '{value}' is not an integer >= 1\n")


def test_texts_that_cannot_be_measured_are_named() -> None:
    assert (temperature_of("generate:0.7"), temperature_of("decode:0")) == (0.7, None)
    for text in ("generate:", "generate:warm"):
        with pytest.raises(InputError, match=f"'{text}' is not generate:TEMPERATURE"):
            temperature_of(text)
    with Worker(TINY) as worker, pytest.raises(InputError, match="--tokens 1: "):
        worker.run(generated_per_second, 1, 0.0)


def test_the_numba_backend_may_be_restricted_to_an_instruction_set() -> None:
    setup = replace(TINY, backend="numba", isa="generic")
    with Worker(setup) as worker:
        assert worker.run(backend_reason).startswith("CPU, any, ")
    assert one_token(setup)[0] > 0
    with pytest.raises(RuntimeError, match="ended with"):
        one_token(replace(setup, isa="sse"))


def backend_reason(engine: Engine) -> str:
    """Describe the numba backend as it would run in the process of an engine."""
    return select("numba").probe().reason


LLAMA_BENCH = """#!{python}
import json, sys
from pathlib import Path
if "--help" in sys.argv:
    print({help!r})
else:
    with Path({log!r}).open("a") as log:
        print(" ".join(sys.argv[1:]), file=log)
    print(json.dumps([{{"avg_ns": 2_000_000_000, "build_commit": "0123abc"}}]))
"""
"""A program that says that each measurement took two seconds."""


@pytest.mark.parametrize(
    ("help", "calls"),
    [
        (
            "--n-depth --no-warmup",
            ["-p 0 -n 0 -pg 5,1 --no-warmup", "-p 3 -n 0", "-p 0 -n 2", "-p 3 -n 0 -d 4", "-p 0 -n 2 -d 4"],
        ),
        ("-gp -w", ["-p 0 -n 0 -pg 5,1 -w 0", "-p 3 -n 0", "-p 0 -n 2", "-p 0 -n 0 -gp 4,2"]),
    ],
)
def test_a_llama_bench_is_a_peer_by_its_path(help: str, calls: list[str], tmp_path: Path) -> None:
    program, log = tmp_path / "llama-bench", tmp_path / "log"
    program.write_text(LLAMA_BENCH.format(python=sys.executable, help=help, log=str(log)))
    program.chmod(0o755)
    setups = {OURS: TINY, "theirs": replace(TINY, peer="theirs", program=str(program))}
    measurements = [parse(text, 2) for text in ("prefill:3", "decode:0", "prefill:3@4", "decode:4", "batch:2")]
    result = compare(setups, measurements, ["process", "memory"], 1)
    figures = {row["name"]: row["figures"].get("theirs") for row in result["rows"]}
    assert figures.pop("process, one token")[0] > 0
    assert figures.pop("process, peak memory")[0] > 0
    assert figures.pop("peak memory")[0] > 0
    deep = [1.5] if "--n-depth" in help else None
    assert figures == {"prefill:3": [1.5], "decode:0": [1.0], "prefill:3@4": deep, "decode:4": [1.0], "batch:2": None}
    assert result["builds"] == {"theirs": "0123abc"}
    given = [line.removeprefix("-m tiny -r 1 -t 1 ").removesuffix(" -o json") for line in log.read_text().splitlines()]
    assert given == calls


def test_a_process_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="/no/such/model"):
        one_token(Setup(None, "/no/such/model", "reference", threads=1, lanes=1))


def test_ratios_are_above_1_where_ours_is_better() -> None:
    seconds, rate, skipped = RUN["rows"]
    assert ratios(seconds, "ours", "theirs") == Spread(1.5, 4 / 3, 2)
    assert ratios(rate, "ours", "theirs") == Spread(2, 2, 4)
    assert ratios(rate, "ours", "nobody") is None
    assert ratios(skipped, "ours", "theirs") is None


def test_the_least_that_work_can_take() -> None:
    work = Work.of("tiny")
    config = work.config
    layer = config.hidden_size * (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    layer += 3 * config.hidden_size * config.intermediate_size
    output = config.hidden_size * config.vocab_size
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    assert work.layer_weights == layer * config.num_hidden_layers
    assert work.weight_bytes == 2 * (work.layer_weights + output + norms)  # bfloat16
    slow_memory, slow_arithmetic = Limits(1.0, 1e18), Limits(1e18, 1.0)
    assert work.seconds(parse("prefill:1024", 1), slow_memory) == 2 * work.weight_bytes
    assert work.seconds(parse("batch:3", 5), slow_memory) == 5 * work.weight_bytes
    assert work.seconds(parse("batch:3", 5), slow_arithmetic) == 2 * work.layer_weights * 15
    # Keys and values, float16: all of 10 tokens, or those in the window.
    token = 4 * config.num_key_value_heads * config.head_dim
    assert work.seconds(parse("decode:10", 1), slow_memory) == work.weight_bytes + 10 * config.num_hidden_layers * token
    seen = sum(4096 if window is None else window for window in config.layer_windows)
    assert work.seconds(parse("decode:4096", 1), slow_memory) == work.weight_bytes + seen * token


def test_times_are_better_when_less_and_shares_are_neither() -> None:
    figures = {"ours": [1.0, 2.0], "theirs": [4.0, 4.0]}
    assert ratios({"unit": "times", "figures": figures}, "ours", "theirs") == Spread(3, 2, 4)
    assert ratios({"unit": "%", "figures": figures}, "ours", "theirs") is None


def test_markdown() -> None:
    page = markdown(RUN)
    assert "## Some model\n\n2026-01-31, A CPU, 2 cores, 25 GB, Linux; python 3.11.7.\n" in page
    assert "| process | 3 s (2-4) |  | 4 s (4-6) | **1.50** (1.33-2.00) |\n" in page
    assert "| decode:0 | 11 tokens/s (10-12) | 80% | 5 tokens/s (3-5.5) | **2.00** (2.00-4.00) |\n" in page
    assert "decode:9 was skipped: the context is short.\n" in page
    assert "| int4 GEMV | 36 GB/s | 98% |\n" in page


def test_limits_have_a_column_only_where_there_are_some() -> None:
    seconds = RUN["rows"][0]
    assert "|  | ours | of limit | theirs | times |\n" in markdown(RUN)
    page = markdown(RUN | {"rows": [seconds]})
    assert "|  | ours | theirs | times |\n| --- | ---: | ---: | ---: |\n| process | 3 s (2-4) | 4 s (4-6) | " in page


def test_each_kind_of_run_has_its_plot(tmp_path: Path) -> None:
    record(RUN | {"title": "Steps", "engines": ["ours", "llama.cpp"]}, tmp_path)
    assert not (tmp_path / "serving.svg").exists()
    assert "(serving.svg)" not in (tmp_path / "benchmarks.md").read_text()
    record(RUN | {"title": "Serving", "engines": ["ours", "llama-server"]}, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    for file, title in (("benchmarks.svg", "Steps"), ("serving.svg", "Serving")):
        assert f"({file})" in page
        assert title in (tmp_path / file).read_text()


def test_a_record_replaces_the_one_with_its_title(tmp_path: Path) -> None:
    for title, date in (("A", "2026-01-01"), ("B", "2026-01-02"), ("A", "2026-01-03")):
        record(RUN | {"title": title, "date": date}, tmp_path)
    runs = json.loads((tmp_path / "benchmarks.json").read_text())
    assert [(run["title"], run["date"]) for run in runs] == [("A", "2026-01-03"), ("B", "2026-01-02")]
    page = (tmp_path / "benchmarks.md").read_text()
    assert page.index("## A") < page.index("2026-01-03") < page.index("## B")
    assert "2026-01-01" not in page


def test_the_plot_has_a_panel_per_run_with_the_peer(tmp_path: Path) -> None:
    other, alone = RUN | {"title": "Other"}, RUN | {"title": "Alone", "engines": ["ours"]}
    plot([RUN, other, alone], "theirs", tmp_path / "plot.svg")
    plot([RUN, other], "theirs", tmp_path / "same.svg")
    image = (tmp_path / "plot.svg").read_text()
    assert image.startswith("<?xml")
    assert image == (tmp_path / "same.svg").read_text()
    plot([alone], "theirs", tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


def test_large_ratios_have_a_logarithmic_axis(tmp_path: Path) -> None:
    far = {"name": "gap", "unit": "s", "figures": {"ours": [1.0], "theirs": [500.0]}}
    plot([RUN], "theirs", tmp_path / "near.svg")
    plot([RUN | {"rows": [*RUN["rows"], far]}], "theirs", tmp_path / "far.svg")
    assert "10^{2}" not in (tmp_path / "near.svg").read_text()
    assert "10^{2}" in (tmp_path / "far.svg").read_text()


def test_machine_and_versions() -> None:
    assert machine()["cpu"]
    assert machine()["memory_gb"] > 0
    assert versions(["reference"]).keys() == {"python", "mistral-portable", "numpy"}

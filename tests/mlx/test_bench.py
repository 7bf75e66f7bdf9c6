"""MLX's memory in `bench`, and the peer mlx-lm in `tools/bench.py`."""

from importlib.resources import files

import mlx.core as mx
import pytest

import mistral_portable as mp
from mistral_portable.bench import ModelEngine, measure, parse, prepare
from tools.bench import OURS, compare
from tools.bench_engines import PEERS, Setup
from tools.bench_report import versions

TINY = str(files("mistral_portable") / "assets" / "tiny")


@pytest.mark.usefixtures("uncompiled")
def test_memory_is_what_mlx_has_allocated() -> None:
    with mp.load("tiny", backend="mlx") as model:
        engine = ModelEngine(model)
        measurement = parse("decode:0", 2)
        prepare(engine, measurement, 1)
        measure(engine, measurement, 1)
        saved = sum(array.nbytes for array in model.program.read_pages(0, [0]).values())
        assert engine.peak_memory_bytes == mx.get_peak_memory() > saved > 0


def test_mlx_lm_is_measured_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")  # in the engines' processes: on a CPU, compiling takes seconds
    setups = {
        OURS: Setup(None, TINY, "mlx", None, 1, "q4_0"),
        "mlx-lm": Setup("mlx-lm", TINY, "mlx", None, 1, "q4_0"),
    }
    result = compare(setups, [parse("prefill:5", 1), parse("decode:3", 2)], ["memory"], 1)
    assert [row["name"] for row in result["rows"]] == ["prefill:5", "decode:3", "peak memory"]
    for row in result["rows"]:
        assert set(row["figures"]) == set(setups)
        assert all(figure > 0 for figures in row["figures"].values() for figure in figures)
    assert {"mlx", "mlx-lm"} <= set(versions(["mlx", "mlx-lm"]))


def test_what_mlx_lm_cannot_load_is_said() -> None:
    with pytest.raises(RuntimeError, match="choose --quantize q4_0 or none"):
        PEERS["mlx-lm"](Setup("mlx-lm", TINY, "mlx", None, 1, "q5_1"))

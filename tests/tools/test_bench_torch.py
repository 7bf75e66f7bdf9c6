"""Limits of a device, attention over a prompt's length, and the torch executor in the comparison; on a CPU."""

import json
from pathlib import Path

import pytest
import torch

from mistral_portable.bench import parse
from tools.bench import OURS, compare
from tools.bench_engines import Setup
from tools.bench_report import versions
from tools.bench_torch import copy_bandwidth, main, matmul_peak

CPU = torch.device("cpu")


def test_limits_are_of_the_size_that_a_machine_has() -> None:
    assert 1e8 < copy_bandwidth(CPU) < 1e13
    assert 1e8 < matmul_peak(CPU, "float32") < 1e15


def test_attention_is_measured_by_every_kernel_that_can_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--device", "cpu", "--dtype", "float32", "--window", "64", "--lengths", "64", "128", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "flash_attn: skipped, it needs a CUDA GPU" in printed
    found = json.loads((tmp_path / "attention.json").read_text())["seconds"]
    assert set(found) == {"sdpa", "flex", "eager"}
    assert all(set(times) == {"64", "128"} and min(times.values()) > 0 for times in found.values())
    assert (tmp_path / "attention.svg").read_text().count("eager") == 1


def test_torch_is_compared_with_its_share_of_the_limits() -> None:
    setups = {
        OURS: Setup(None, "tiny", "torch", 1, 2, dtype="bfloat16", device="cpu"),
        "transformers": Setup("transformers", "tiny", "torch", 1, 2, device="cpu"),
    }
    result = compare(setups, [parse("prefill:4", 1), parse("batch:2@3", 2)], ["memory"], 1)
    prefill, batch, memory = result["rows"]
    for row in (prefill, batch):
        assert set(row["figures"]) == set(setups)
        assert all(0 < share < 1 for share in row["shares"])
    assert all(figure[0] > 0 for figure in memory["figures"].values())
    assert {"torch", "transformers"} <= set(versions(["torch", "transformers"]))

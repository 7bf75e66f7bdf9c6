"""`inspect`: sizes that can be counted by hand, the graph, the tensors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli.processes import compile_kernels, invoke
from weights.files import random_tensors, raw_params, small_config, write_raw

import mistral_portable as mp
from mistral_portable.graph import build, to_mermaid, to_text
from mistral_portable.graph.passes import select_rows
from mistral_portable.weights import DenseTensor, open_checkpoint

CHECKPOINT = open_checkpoint("tiny")


def test_summary() -> None:
    summary = json.loads(invoke("inspect", "tiny", "--json", "--context", "1000").out)
    config = CHECKPOINT.config
    count = sum(int(np.prod(tensor.shape)) for tensor in CHECKPOINT.tensors.values())
    assert sum(summary["parameters"].values()) == count
    assert summary["weights_bytes"] == {"stored": {"bfloat16": 2 * count}, "float32": 4 * count}
    # Ring slots are the window and the slack of a chunk: 64 + 512 - 1, below the context.
    slots = sum(min(1000, 1000 if window is None else window + 511) for window in config.layer_windows)
    expected = slots * 2 * config.num_key_value_heads * config.head_dim * 4
    assert summary["cache_bytes"] == {"float16": expected // 2, "float32": expected}
    assert summary["context"] == 1000
    assert mp.MistralConfig.from_dict(summary["config"]) == config
    assert summary["tokenizer"].startswith("sentencepiece v3, ")


def test_summary_for_people_reads_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_kernels()  # which reads weights
    monkeypatch.delattr(DenseTensor, "raw")
    monkeypatch.delattr(DenseTensor, "numpy")
    result = invoke("inspect", "tiny")
    assert (result.status, result.err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in result.out.splitlines() if line.strip())
    assert rows["hidden_size"].strip() == str(CHECKPOINT.config.hidden_size)
    assert "as stored" in rows["weights"]
    assert "4096 tokens" in rows["cache"]


@pytest.mark.parametrize(("name", "render"), [("text", to_text), ("mermaid", to_mermaid)])
def test_graph(name: str, render: object) -> None:
    assert callable(render)
    expected = render(select_rows(build(CHECKPOINT.config), "logits"))
    assert invoke("inspect", "tiny", "--graph", name).out == f"{expected}\n"


def test_tensors() -> None:
    rows = json.loads(invoke("inspect", "tiny", "--tensors", "--json").out)
    assert {row["name"]: (row["dtype"], tuple(row["shape"]), row["bytes"]) for row in rows} == {
        name: (tensor.dtype, tensor.shape, tensor.nbytes) for name, tensor in CHECKPOINT.tensors.items()
    }
    assert len(invoke("inspect", "tiny", "--tensors").out.splitlines()) == 1 + len(rows)


def test_a_missing_or_broken_tokenizer_is_a_finding(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT.path, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    assert json.loads(invoke("inspect", str(folder), "--json").out)["tokenizer"] == "none"
    (folder / "tokenizer.model.v3").write_bytes(b"junk")
    assert json.loads(invoke("inspect", str(folder), "--json").out)["tokenizer"].startswith("unusable: ")


def test_two_original_lengths_are_shown(tmp_path: Path) -> None:
    """Raw files can state two original lengths, the keys of config.json cannot; such a model still runs."""
    config = small_config()
    write_raw(tmp_path, config, random_tensors(config, np.random.default_rng(0)))
    yarn = {"factor": 4, "original_max_position_embeddings": 64, "beta": 32, "alpha": 1, "apply_scale": False}
    queries = {"beta": 0.5, "original_max_position_embeddings": 16}
    (tmp_path / "params.json").write_text(json.dumps(raw_params(config) | {"yarn": yarn, "llama_4_scaling": queries}))
    assert invoke("inspect", str(tmp_path)).status == 0
    shown = json.loads(invoke("inspect", str(tmp_path), "--json").out)["config"]
    assert shown["query_scale"] == queries
    assert shown["rope_parameters"]["original_max_position_embeddings"] == 64
    with mp.load(tmp_path, backend="reference") as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()

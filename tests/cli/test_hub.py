"""`pull`, `list`, `where`, `rm`, and what `inspect` says of the hub's cache."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli.processes import COMMAND, Result, Terminal, invoke
from huggingface_hub import DeleteCacheStrategy, constants
from weights.cache_folder import write_cache
from weights.files import random_tensors, small_config, write_gguf, write_hf
from weights.hub_server import Hub

from mistral_portable.cli.output import size

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")

OTHER = b'{"model_type": "qwen2"}'
COMMIT = "1" * 40


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("models")
    config = small_config()
    tensors = random_tensors(config, np.random.default_rng(0))
    write_hf(folder / "hf", config, tensors)
    write_gguf(folder / "m.gguf", config, tensors)
    hf = {path.name: path.read_bytes() for path in (folder / "hf").iterdir()}
    return {
        "some/hf": hf,
        "some/gguf": {"a.gguf": (folder / "m.gguf").read_bytes(), "b.gguf": b"junk"},
        "some/other": {"config.json": OTHER, "model.safetensors": b"large"},
    }


@pytest.fixture
def cache(models: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the models."""
    folder = tmp_path / "hub"
    for name, files in models.items():
        write_cache(folder, name, {COMMIT: files}, {"main": COMMIT})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def hub(models: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    with Hub(models) as hub:
        yield hub


def call(hub: Hub, home: Path, *arguments: str, **environment: str) -> Result:
    """Call a command in a process of its own, for which `hub` is the hub."""
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [*COMMAND, *arguments], env=os.environ | own | environment, capture_output=True, text=True, timeout=120
    )
    return Result(done.returncode, done.stdout, done.stderr)


def test_pull(hub: Hub, tmp_path: Path, models: dict[str, dict[str, bytes]]) -> None:
    pulled = call(hub, tmp_path, "pull", "some/hf")
    bytes_in_all = sum(map(len, models["some/hf"].values()))
    assert (pulled.status, pulled.err) == (0, "")
    said, path = pulled.out.strip().split(" in ")
    assert said == f"some/hf: {size(bytes_in_all)}"
    assert {file.name: file.read_bytes() for file in Path(path).iterdir()} == models["some/hf"]

    refused = call(hub, tmp_path, "pull", "some/other")
    assert (refused.status, refused.out, refused.err.count("\n")) == (1, "", 1)
    assert "model_type='qwen2' is not supported" in refused.err
    assert not any(path.endswith("some/other/resolve/main/model.safetensors") for _, path, _ in hub.requests)

    offline = call(hub, tmp_path, "pull", "some/hf", HF_HUB_OFFLINE="1")
    assert (offline.status, offline.out) == (0, pulled.out)
    assert "note: HF_HUB_OFFLINE is set" in offline.err
    missing = call(hub, tmp_path, "pull", "some/gguf:a.gguf", HF_HUB_OFFLINE="1")
    assert (missing.status, missing.err.count("\n")) == (1, 1)
    assert "HF_HUB_OFFLINE is set: unset it" in missing.err


def test_pull_of_one_file_shows_how_far_it_is(hub: Hub, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    with Terminal("pull", "some/gguf:a.gguf", columns=200, environment=environment) as terminal:
        terminal.expect(r"pulling some/gguf:a\.gguf")
        terminal.expect(r"some/gguf:a\.gguf: [0-9.]+ KiB in .*a\.gguf")
        assert terminal.wait() == 0


def test_list_marks_what_can_be_opened(cache: Path, models: dict[str, dict[str, bytes]]) -> None:
    rows = {row["model"]: row for row in json.loads(invoke("list", "--json").out)}
    assert {name: row["usable"] for name, row in rows.items()} == {
        "some/gguf:a.gguf": True,
        "some/gguf:b.gguf": False,
        "some/hf": True,
        "some/other": False,
    }
    assert rows["some/gguf:a.gguf"]["bytes"] == len(models["some/gguf"]["a.gguf"])
    assert rows["some/hf"]["opens"] == "safetensors"
    assert "model_type='qwen2' is not supported" in rows["some/other"]["opens"]
    lines = invoke("list").out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", *rows]
    assert all(line.split()[1] == "main" for line in lines[1:])


def test_list_counts_what_is_no_model(cache: Path) -> None:
    write_cache(cache, "some/data", {COMMIT: {"x.csv": b"1,2"}}, {"main": COMMIT})
    (cache / "models--some--data").rename(cache / "datasets--some--data")
    result = invoke("list")
    assert "some/data" not in result.out
    assert result.err == "note: 1 data sets and spaces are there, too, 3 bytes: see 'hf cache ls'\n"


def test_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    result = invoke("list")
    assert (result.status, result.out) == (0, "")
    assert "no model is in" in result.err
    assert invoke("list", "--json").out == "[]\n"


def test_where(cache: Path, tmp_path: Path) -> None:
    snapshot = cache / "models--some--hf" / "snapshots" / COMMIT
    assert invoke("where", "some/hf").out == f"{snapshot}\n"
    assert invoke("where", "some/hf", "--revision", COMMIT[:8]).out == f"{snapshot}\n"
    assert invoke("where", "-m", "some/gguf:a.gguf").out.endswith("a.gguf\n")
    assert invoke("where", str(tmp_path)).out == f"{tmp_path}\n"
    assert Path(invoke("where", "tiny").out.strip(), "config.json").exists()
    for words in (["some/none"], ["some/hf", "--revision", "v2"], ["some/gguf:c.gguf"]):
        result = invoke("where", *words)
        assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
        assert f"not in {cache}" in result.err


def test_inspect_shows_what_is_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shown = json.loads(invoke("inspect", "some/gguf:a.gguf", "--json").out)["cached"]
    assert [(own["model"], own["revision"]) for own in shown] == [
        ("some/gguf:a.gguf", "main"),
        ("some/gguf:b.gguf", "main"),
    ]
    assert "some/gguf:b.gguf (main), 4 bytes" in invoke("inspect", "some/gguf:a.gguf").out
    assert json.loads(invoke("inspect", "tiny", "--json").out)["cached"] == []


def test_rm(cache: Path, models: dict[str, dict[str, bytes]]) -> None:
    unsure = invoke("rm", "some/hf")
    assert (unsure.status, unsure.out) == (2, "")
    assert "give --yes" in unsure.err
    freed = size(len(models["some/gguf"]["a.gguf"]))
    assert invoke("rm", "some/gguf:a.gguf", "--yes") == Result(0, f"some/gguf:a.gguf: removed, {freed}\n", "")
    assert invoke("rm", "some/gguf:a.gguf", "--yes").status == 1
    assert invoke("rm", "some/hf", "-y", "--revision", "main").status == 0
    assert [row["model"] for row in json.loads(invoke("list", "--json").out)] == ["some/gguf:b.gguf", "some/other"]
    assert invoke("rm", "some/other", "--yes", "--revision", "v1").status == 1
    assert invoke("rm", "some/other", "--yes").status == 0


def test_rm_asks(cache: Path) -> None:
    for answer, gone in (("n", False), ("y", True)):
        with Terminal("rm", "some/gguf", environment={"HF_HUB_CACHE": str(cache)}) as terminal:
            terminal.expect(r"Remove some/gguf \(.*\)\? \[y/N\] ")
            terminal.press(f"{answer}\n")
            terminal.expect("removed")
            assert terminal.wait() == (0 if gone else 1)
        assert (cache / "models--some--gguf").exists() != gone


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may remove anything")
def test_what_may_not_be_removed_is_one_line(cache: Path) -> None:
    folder = cache / "models--some--hf" / "blobs"
    folder.chmod(0o500)
    try:
        result = invoke("rm", "some/hf", "--yes")
    finally:
        folder.chmod(0o700)
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert "check the permissions" in result.err


def test_ctrl_c_leaves_nothing_half_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = DeleteCacheStrategy.execute

    def interrupted(self: DeleteCacheStrategy) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        execute(self)

    monkeypatch.setattr(DeleteCacheStrategy, "execute", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    try:
        assert invoke("rm", "some/gguf", "--yes") == Result(130, "", "")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (cache / "models--some--gguf").exists()


@pytest.mark.parametrize("command", ["pull", "rm"])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tiny", "built in"),
        (".", "a path on this machine"),
        ("a b", "no name on the Hugging Face hub"),
        ("llama3:8b", "no name on the Hugging Face hub"),
        ("../x/y", "no name on the Hugging Face hub"),
    ],
)
def test_nonsense_is_one_line(command: str, name: str, why: str) -> None:
    result = invoke(command, name)
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert why in result.err

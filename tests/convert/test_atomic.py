"""Atomic conversion: interrupted results do not load, nothing is replaced unless requested; memory; damaged sources."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights.damage import Damage, damage
from weights.files import random_tensors, small_config, write_gguf, write_hf, write_raw

import mistral_portable as mp
from mistral_portable.conversion import FORMATS
from mistral_portable.errors import CheckpointError, InputError, MistralPortableError
from mistral_portable.weights import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

formats = pytest.mark.parametrize("to", sorted(FORMATS))
TINY_TENSORS = len(open_checkpoint("tiny").tensors)


@formats
@pytest.mark.parametrize("after", [0, 7, TINY_TENSORS - 1])
def test_a_failure_leaves_nothing(tmp_path: Path, to: str, after: int) -> None:
    seen: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        seen.append(what)
        if len(seen) > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mp.convert("tiny", tmp_path / "new" / "m", to, progress=stop)
    assert list((tmp_path / "new").iterdir()) == []


KILLED = """
import os, signal, sys
import mistral_portable as mp

def kill(what, done, total):
    if done >= int(sys.argv[3]) * total // 100:
        os.kill(os.getpid(), signal.SIGKILL)

mp.convert("tiny", sys.argv[1], sys.argv[2], progress=kill)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
@pytest.mark.parametrize(("to", "percent"), [("hf", 50), ("hf", 100), ("gguf", 50), ("raw", 100), ("mlx", 50)])
def test_what_a_killed_process_leaves_does_not_load(tmp_path: Path, to: str, percent: int) -> None:
    destination = tmp_path / "m"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, destination, to, str(percent)])
    assert run.returncode == -signal.SIGKILL
    assert not destination.exists()
    left = [path for path in tmp_path.rglob("*") if path.is_file() or path.is_dir()]
    assert all(".partial" in str(path) for path in left)
    for path in left:
        with pytest.raises(MistralPortableError):
            open_checkpoint(path)


@formats
@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path, to: str) -> None:
    """A limit on the size of files simulates a full disk."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))  # Python ignores SIGXFSZ: writing fails
    try:
        with pytest.raises(CheckpointError, match="m: cannot be written"):
            mp.convert("tiny", tmp_path / "m", to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@formats
def test_an_existing_destination_is_replaced_only_if_asked(tmp_path: Path, to: str) -> None:
    path = mp.convert("tiny", tmp_path / "m", to, dtype="float16")
    with pytest.raises(InputError, match="exists already"):
        mp.convert("tiny", path, to)
    assert open_checkpoint(path).tensors["lm_head.weight"].dtype == "float16"
    if path.is_dir():
        (path / "stale.safetensors").write_bytes(b"of the model before")
    mp.convert("tiny", path, to, overwrite=True)
    assert open_checkpoint(path).tensors["lm_head.weight"].dtype == "bfloat16"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]
    with pytest.raises(KeyboardInterrupt):
        mp.convert("tiny", path, to, dtype="float16", overwrite=True, progress=interrupt)
    assert open_checkpoint(path).tensors["lm_head.weight"].dtype == "bfloat16"


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_folder_that_cannot_be_replaced_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = mp.convert("tiny", tmp_path / "m", "hf", dtype="float16")
    rename, calls = Path.rename, []

    def second_fails(self: Path, target: Path) -> Path:
        calls.append(self.name)
        if len(calls) == 2:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        mp.convert("tiny", path, "hf", overwrite=True)
    assert calls == ["m", "m", "replaced"]
    assert open_checkpoint(path).tensors["lm_head.weight"].dtype == "float16"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def interrupt(what: str, done: int, total: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("to", "kind"),
    [
        *itertools.product(["hf", "gguf"], ["folder of something", "link", "empty folder"]),
        *itertools.product(["hf", "gguf"], ["file", "folder with a config"]),
    ],
)
def test_what_is_no_model_is_never_replaced(tmp_path: Path, to: str, kind: str) -> None:
    path = tmp_path / "m"
    match kind:
        case "folder of something":
            path.mkdir()
            (path / "thesis.txt").write_text("years of work")
        case "file":
            path.write_text("years of work")
        case "folder with a config":
            path.mkdir()
            (path / "config.json").write_text("{}")
        case "link":
            (tmp_path / "target").mkdir()
            path.symlink_to(tmp_path / "target")
        case "empty folder":
            path.mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="is not overwritten"):
        mp.convert("tiny", path, to, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_is_not_converted_onto_itself(tmp_path: Path) -> None:
    path = mp.convert("tiny", tmp_path / "m", "hf")
    file = mp.convert("tiny", path / "m.gguf", "gguf")
    for source, destination, to in (
        (path / "config.json", path, "hf"),
        (path / ".." / "m" / "config.json", path, "raw"),
        (file, path, "hf"),
        (file, file, "gguf"),
    ):
        with pytest.raises(InputError, match="holds the source"):
            mp.convert(source, destination, to, overwrite=True)
    assert open_checkpoint(path / "config.json").tensors
    assert open_checkpoint(file).tensors


def test_a_destination_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        mp.convert("tiny", tmp_path / "file" / "m", "hf")


@pytest.mark.parametrize(
    ("to", "dtype", "named"),
    [
        ("onnx", None, "to='onnx': choose one of hf, gguf, raw, mlx"),
        ("hf", "int8", "dtype='int8': choose one of float32"),
    ],
)
def test_arguments_that_are_refused(tmp_path: Path, to: str, dtype: str | None, named: str) -> None:
    with pytest.raises(InputError, match=named):
        mp.convert("tiny", tmp_path / "m", to, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


@formats
@pytest.mark.parametrize("source", ["hf", "gguf", "pieces"])
def test_memory_is_that_of_one_tensor(tmp_path: Path, to: str, source: str) -> None:
    config = small_config(
        vocab_size=512, hidden_size=128, intermediate_size=512, num_hidden_layers=24, num_attention_heads=8,
        num_key_value_heads=8, head_dim=16,
    )  # fmt: skip
    tensors = random_tensors(config, np.random.default_rng(0))
    if source == "hf":
        write_hf(tmp_path / "source", config, tensors)
    elif source == "gguf":
        write_gguf(tmp_path / "source", config, tensors, "Q8_0")
    else:
        write_raw(tmp_path / "source", config, tensors, "pth", pieces=2)
    largest = 4 * max(tensor.size for tensor in tensors.values())
    total = 4 * sum(tensor.size for tensor in tensors.values())
    del tensors
    mp.convert("tiny", tmp_path / "first", to)  # imports all modules before memory is measured
    tracemalloc.start()
    mp.convert(tmp_path / "source", tmp_path / "m", to)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > 20 * largest
    # An array of float32, its source, and headers.
    assert peak < 2 * largest + 2e6


CONFIG = small_config(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undamaged")
    write_hf(folder, CONFIG, random_tensors(CONFIG, np.random.default_rng(0)), dtype="bfloat16")
    return folder


@settings(max_examples=40)
@given(
    edits=damage(header=700),
    file=st.sampled_from(["model.safetensors", "config.json"]),
    to=st.sampled_from(sorted(FORMATS)),
)
def test_damaged_sources_leave_a_model_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, undamaged: Path, edits: list[Damage], file: str, to: str
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    source = Path(shutil.copytree(undamaged, folder / "source"))
    data = (source / file).read_bytes()
    for edit in edits:
        data = edit(data)
    (source / file).write_bytes(data)
    written = folder / "written"
    try:
        mp.convert(source, written / "m", to)
    except MistralPortableError:
        assert not written.exists() or os.listdir(written) == []
    else:
        assert os.listdir(written) == ["m"]
        assert open_checkpoint(written / "m").tensors

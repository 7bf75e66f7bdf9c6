"""Hub repositories, opened like by a user: in a new process, from a server on loopback, with an empty cache."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weights import test_gptq, test_packed_settings
from weights.files import random_tensors, small_config, write_gguf, write_hf, write_raw, write_torch
from weights.hub_server import COMMIT, Hub, hash_of
from weights.packed_files import write_packed

# Opens each model named in the arguments and prints a JSON line for it.
CLIENT = """
import json, sys
from mistral_portable.errors import MistralPortableError
from mistral_portable.weights import open_checkpoint

seen = []
for model in sys.argv[1:]:
    model, _, revision = model.partition("@")
    try:
        checkpoint = open_checkpoint(
            model, revision=revision or None, progress=lambda *step: seen.append(step)
        )
        answer = {
            "path": str(checkpoint.path),
            "format": checkpoint.format,
            "sum": sum(float(t.numpy().sum()) for t in checkpoint.tensors.values()),
            "tokenizer": checkpoint.tokenizer and checkpoint.tokenizer.path.name,
            "progress": seen,
        }
    except MistralPortableError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer))
"""

# Code to run before: the disk is full as soon as a download writes to it.
FULL_DISK = """
import errno, os, pathlib

path_open = pathlib.Path.open
def full(self, mode="r", *args, **kwargs):
    file = path_open(self, mode, *args, **kwargs)
    if not self.name.endswith(".incomplete"):
        return file
    class Full:
        def __enter__(self): return self
        def __exit__(self, *_): file.close()
        def __getattr__(self, name): return getattr(file, name)
        def write(self, data): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return Full()
pathlib.Path.open = full
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("repositories")
    config = small_config()
    tensors = random_tensors(config, np.random.default_rng(0))
    write_hf(folder / "hf", config, tensors, shards=2)
    write_gguf(folder / "model.gguf", config, tensors)
    write_gguf(folder / "m.gguf", config, tensors, split_max_tensors=len(tensors) // 2 + 1)
    parts = {f"Q8/{path.name}": path.read_bytes() for path in folder.glob("m-*.gguf")}
    hf = {path.name: path.read_bytes() for path in (folder / "hf").iterdir()}
    gguf = (folder / "model.gguf").read_bytes()
    write_raw(folder / "raw", config, tensors)
    write_raw(folder / "torch", config, tensors, "pth", pieces=2)
    raw, torch = ({path.name: path.read_bytes() for path in (folder / kind).iterdir()} for kind in ("raw", "torch"))
    write_torch(folder / "bin", config, tensors, shards=2)
    write_packed(folder / "gptq", test_packed_settings.CONFIG, test_gptq.HOW, test_gptq.Packer(4, 32, False, True, 1))
    test_packed_settings.move_settings(folder / "gptq", {"bits": 4, "group_size": 32}, "quantize_config.json")
    packed = {path.name: path.read_bytes() for path in (folder / "gptq").iterdir()}
    bins = {path.name: path.read_bytes() for path in (folder / "bin").iterdir()}
    unwanted = dict.fromkeys(["pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors"], b"unwanted")
    names = ["added_tokens.json", "tokenizer.json", "tokenizer_config.json"]
    settings = {name: name.encode() for name in names}
    return {
        "some/hf": hf
        | unwanted
        | settings
        | {"tokenizer.model.v3": b"v3", "tokenizer.model": b"v1", "README.md": b"read me"},
        "some/gptq": packed,
        "some/raw": raw | {"tekken.json": b"{}", "config.json": b"{}", "README.md": b"read me", "x/params.json": b"{}"},
        "some/torch": torch,
        "some/bin": bins | {"optimizer.bin": b"unwanted", "consolidated.00.pth": b"unwanted", "params.json": b"{}"},
        "some/both": torch | raw,
        "some/params": {"params.json": raw["params.json"]},
        "some/gguf": {"a.Q8_0.gguf": gguf, "b[1].gguf": gguf, "README.md": b"read me"},
        "some/split": {**parts, "Q4/m-00001-of-00002.gguf": b"unwanted"},
        "some/pickles": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
        "some/other": {"config.json": b"{}", "flax_model.msgpack": b"flax"},
        "some/nothing": {"README.md": b"read me"},
        "some/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x", "config.json": b"{}"},
        "some/secret": {},
    }


@pytest.fixture
def hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    with Hub(repositories, gated=("some/secret",)) as hub:
        yield hub


def open_all(
    models: list[str], home: Path, url: str, before: str = "", environment: Mapping[str, str] | None = None
) -> list[Any]:
    """Open the models in a process of their own, with the hub at `url` and the cache under `home`."""
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    source = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", before + CLIENT, *models],
        env=kept | own | {"PYTHONPATH": str(source)} | dict(environment or {}),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def downloads(hub: Hub) -> list[str]:
    """Sorted names of the files whose content was requested."""
    return sorted(
        path.split(f"/resolve/{COMMIT}/")[1] for get, path, _ in hub.requests if get == "GET" and "resolve" in path
    )


def downloaded(answer: dict[str, Any]) -> list[Any]:
    """The last report of progress before files are checked."""
    steps = [step for step in answer["progress"] if step[0] != "checking"]
    _, checked, of = answer["progress"][-1]
    assert checked == of >= steps[-1][2]
    last: list[Any] = steps[-1]
    return last


def test_a_repository_is_downloaded_once(hub: Hub, tmp_path: Path, repositories: dict[str, dict[str, bytes]]) -> None:
    (first,) = open_all(["some/hf"], tmp_path, hub.url)
    assert first["format"] == "safetensors"
    assert first["tokenizer"] == "tokenizer.model.v3"
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    settings = ["tokenizer.json", "tokenizer.model", "tokenizer.model.v3", "tokenizer_config.json"]
    wanted = ["added_tokens.json", "config.json", *shards, *settings]
    assert downloads(hub) == wanted
    size = sum(len(repositories["some/hf"][file]) for file in wanted)
    assert downloaded(first) == ["some/hf", size, size]

    hub.requests.clear()
    again, at_revision, offline_commit = open_all(["some/hf", "some/hf@main", f"some/hf@{COMMIT}"], tmp_path, hub.url)
    assert not downloads(hub)
    assert again["path"] == at_revision["path"] == offline_commit["path"] == first["path"]
    assert again["sum"] == first["sum"]

    (offline,) = open_all(["some/hf"], tmp_path, "http://127.0.0.1:9", environment={"HF_HUB_OFFLINE": "1"})
    (no_network,) = open_all(["some/hf"], tmp_path, "http://127.0.0.1:9")
    assert offline["path"] == no_network["path"] == first["path"]


def test_a_repository_of_mistrals_own_files(
    hub: Hub, tmp_path: Path, repositories: dict[str, dict[str, bytes]]
) -> None:
    raw, both, torch, hf = open_all(["some/raw", "some/both", "some/torch", "some/hf"], tmp_path, hub.url)
    assert raw["format"] == both["format"] == torch["format"] == "raw"
    assert raw["sum"] == both["sum"] == torch["sum"] == pytest.approx(hf["sum"])
    assert raw["tokenizer"] == "tekken.json"
    size = len(repositories["some/raw"]["consolidated.safetensors"])
    assert downloaded(raw) == ["some/raw", size, size]
    gets = [get for method, get, _ in hub.requests if method == "GET"]
    requested = {get.partition("/resolve/")[0] + ":" + Path(get).name for get in gets}
    assert {name for name in requested if "consolidated" in name} == {
        "/some/raw:consolidated.safetensors",
        "/some/both:consolidated.safetensors",
        "/some/torch:consolidated.00.pth",
        "/some/torch:consolidated.01.pth",
    }

    hub.requests.clear()
    again, no_network = (
        open_all(["some/raw"], tmp_path, url, environment={"HF_HUB_OFFLINE": offline})[0]
        for url, offline in ((hub.url, "0"), ("http://127.0.0.1:9", "1"))
    )
    assert not downloads(hub)
    assert again["path"] == no_network["path"] == raw["path"]


def test_settings_of_packed_weights_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    (found,) = open_all(["some/gptq"], tmp_path, hub.url)
    assert found["format"] == "safetensors"
    assert downloads(hub) == ["config.json", "model.safetensors", "quantize_config.json"]


def test_a_repository_of_torch_files(hub: Hub, tmp_path: Path) -> None:
    (hf,) = open_all(["some/hf"], tmp_path, hub.url)
    hub.requests.clear()
    (found,) = open_all(["some/bin"], tmp_path, hub.url)
    assert found["sum"] == pytest.approx(hf["sum"])
    shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"]
    assert downloads(hub) == ["config.json", "params.json", *shards]


CONFIGS = """
import json, sys
from mistral_portable.errors import MistralPortableError
from mistral_portable.transformers import MistralConfig

for model in sys.argv[1:]:
    try:
        print(json.dumps(MistralConfig.from_pretrained(model).hidden_size))
    except MistralPortableError as error:
        print(json.dumps(str(error)))
sys.exit()
"""


def test_a_config_is_downloaded_alone(hub: Hub, tmp_path: Path) -> None:
    hf, torch, none, gone = open_all(
        ["some/hf", "some/torch", "some/nothing", "some/missing"], tmp_path, hub.url, before=CONFIGS
    )
    assert hf == torch == small_config().hidden_size
    assert none == "some/nothing: the repository has no config.json and no params.json"
    assert "no such repository on the hub" in str(gone)
    assert downloads(hub) == ["config.json", "params.json"]
    hub.requests.clear()
    assert open_all(["some/hf"], tmp_path, "http://127.0.0.1:9", before=CONFIGS) == [hf]


def test_one_gguf_file_of_a_repository(hub: Hub, tmp_path: Path, repositories: dict[str, dict[str, bytes]]) -> None:
    plain, special = open_all(["some/gguf:a.Q8_0.gguf", "some/gguf:b[1].gguf"], tmp_path, hub.url)
    assert plain["format"] == special["format"] == "gguf"
    assert plain["sum"] == special["sum"]
    size = len(repositories["some/gguf"]["a.Q8_0.gguf"])
    assert downloaded(plain) == ["a.Q8_0.gguf", size, size]
    assert downloads(hub) == ["a.Q8_0.gguf"]  # the other has the same content, and is linked


def test_all_parts_of_a_split_gguf_file(hub: Hub, tmp_path: Path) -> None:
    whole, split = open_all(["some/gguf:a.Q8_0.gguf", "some/split:Q8/m-00002-of-00002.gguf"], tmp_path, hub.url)
    assert Path(split["path"]).name == "m-00001-of-00002.gguf"
    assert split["sum"] == whole["sum"]
    parts = ["Q8/m-00001-of-00002.gguf", "Q8/m-00002-of-00002.gguf"]
    assert [name for name in downloads(hub) if "split" in name or "of" in name] == parts


NO_WEIGHTS = (
    "the repository has no config.json with *.safetensors or pytorch_model.bin, no params.json with consolidated.*"
)


def test_errors_say_what_to_do(hub: Hub, tmp_path: Path) -> None:
    expected = {
        "some/missing": "no such file or folder, and no such repository on the hub",
        "some/secret": f"access is restricted: accept the terms at {hub.url}/some/secret",
        "some/hf@v9": "some/hf: the repository has no revision 'v9'",
        "some/gguf": f"{NO_WEIGHTS}; name a file: some/gguf:a.Q8_0.gguf, some/gguf:b[1].gguf",
        "some/gguf:c.gguf": "no c.gguf; name a file: some/gguf:a.Q8_0.gguf, some/gguf:b[1].gguf",
        "some/nothing": f"{NO_WEIGHTS}, and no GGUF file either",
        "some/adapter": "a LoRA adapter, which runs with its model only: hf download some/adapter --local-dir ADAPTER",
        "some/pickles": "pytorch_model.bin: no zip file, as torch.save writes since 1.6",
        "some/other": f"{NO_WEIGHTS}, and no GGUF file either",
        "some/params": f"{NO_WEIGHTS}, and no GGUF file either",
        "some/gguf:m-00001-of-00002.gguf": "no m-00001-of-00002.gguf; name a file: some/gguf:a.Q8_0.gguf",
        "no--way/x": "the download failed",
    }
    answers = open_all(list(expected), tmp_path, hub.url)
    for model, answer in zip(expected, answers, strict=True):
        assert answer.get("error") == "CheckpointError", (model, answer)
        assert expected[model] in answer["message"], model
        assert answer["message"].isprintable(), model


def test_without_a_network(tmp_path: Path) -> None:
    (refused,) = open_all(["some/hf"], tmp_path, "http://127.0.0.1:9")
    (offline,) = open_all(["some/hf"], tmp_path, "http://127.0.0.1:9", environment={"HF_HUB_OFFLINE": "1"})
    assert "the hub cannot be reached and the cache does not hold all files; check the network" in refused["message"]
    assert "HF_HUB_OFFLINE is set: unset it" in offline["message"]


def test_a_broken_connection_is_resumed(tmp_path: Path) -> None:
    """huggingface_hub writes chunks of 10 MiB, so the file is larger and the connection breaks after the first."""
    config = small_config(vocab_size=32768)
    write_gguf(tmp_path / "model.gguf", config, random_tensors(config, np.random.default_rng(0)))
    data = (tmp_path / "model.gguf").read_bytes()
    with Hub({"some/gguf": {"large.gguf": data}}, break_after=11_000_000) as hub:
        (answer,) = open_all(["some/gguf:large.gguf"], tmp_path / "home", hub.url)
    assert Path(answer["path"]).read_bytes() == data
    assert [span for method, _, span in hub.requests if method == "GET" and span] == ["bytes=10485760-"]
    assert downloaded(answer) == ["large.gguf", len(data), len(data)]


def test_a_full_disk(hub: Hub, tmp_path: Path) -> None:
    (answer,) = open_all(["some/hf"], tmp_path, hub.url, before=FULL_DISK)
    assert answer.get("error") == "CheckpointError"
    assert "the disk is full" in answer["message"]
    assert str(tmp_path) in answer["message"]
    assert "HF_HOME" in answer["message"]

    (later,) = open_all(["some/hf"], tmp_path, hub.url)
    assert later["format"] == "safetensors"


def test_files_that_are_not_what_the_hub_says(tmp_path: Path, repositories: dict[str, dict[str, bytes]]) -> None:
    """A damaged download of the right size is removed, and downloaded again on the next call."""
    files = repositories["some/hf"]
    damaged = ("config.json", "model-00002-of-00002.safetensors", "tokenizer.model")
    hubs: dict[str, dict[str, bytes]] = {}
    for index, file in enumerate(damaged):
        hubs[f"some/damaged{index}"] = files | {file: bytes([files[file][0] ^ 1]) + files[file][1:]}
    with Hub(hubs, hashes={file: hash_of(file, files[file]) for file in damaged}) as hub:
        for file, answer in zip(damaged, open_all([*hubs], tmp_path, hub.url), strict=True):
            assert answer.get("error") == "CheckpointError"
            assert f"{file}: the download is damaged" in answer["message"]
    with Hub(dict.fromkeys(hubs, files)) as hub:
        for answer in open_all([*hubs], tmp_path, hub.url):
            assert answer["format"] == "safetensors"
        assert downloads(hub) == sorted(damaged)

"""open_checkpoint: all forms of its argument, and the cost of opening."""

import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from weights.files import random_tensors, shapes, small_config, write_gguf, write_hf, write_raw

from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError
from mistral_portable.tokenizer.source import TokenizerFile
from mistral_portable.weights import open_checkpoint

CONFIG = small_config()
TENSORS = random_tensors(CONFIG, np.random.default_rng(0))


def test_tiny_is_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_hf(tmp_path / "tiny", CONFIG, TENSORS)
    embedded = open_checkpoint("tiny")
    assert isinstance(embedded.tokenizer, TokenizerFile)
    assert embedded.config != open_checkpoint("./tiny").config
    assert open_checkpoint(Path("tiny")).config == open_checkpoint("./tiny").config


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.safetensors", CONFIG, TENSORS)
    assert open_checkpoint(tmp_path / "a.safetensors").format == "gguf"
    write_hf(tmp_path / "b", CONFIG, TENSORS)
    (tmp_path / "b" / "model.safetensors").rename(tmp_path / "b" / "weights")
    assert open_checkpoint(str(tmp_path / "b" / "weights")).format == "safetensors"


def test_a_folder_with_one_gguf(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", CONFIG, TENSORS)
    assert open_checkpoint(tmp_path).path == tmp_path / "model.gguf"


def test_ambiguous_folders_are_refused_with_the_list(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", CONFIG, TENSORS)
    write_gguf(tmp_path / "b.gguf", CONFIG, TENSORS)
    with pytest.raises(CheckpointError, match=r"several checkpoints: a\.gguf, b\.gguf; give the path"):
        open_checkpoint(tmp_path)
    (tmp_path / "b.gguf").unlink()
    write_hf(tmp_path, CONFIG, TENSORS)
    with pytest.raises(CheckpointError, match=r"several checkpoints: model\.safetensors, a\.gguf"):
        open_checkpoint(tmp_path)


def test_hugging_face_s_and_mistral_s_own_weights_in_one_folder(tmp_path: Path) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    other = small_config(rope_theta=1e6)
    write_raw(tmp_path, other, TENSORS)
    clone = open_checkpoint(tmp_path)
    assert (clone.format, clone.config.rope_theta) == ("safetensors", CONFIG.rope_theta)
    assert re.search(r"own files, too \(consolidated\.safetensors\): Hugging .*params\.json", clone.notices[0])
    for name in ("config.json", "model.safetensors"):
        opened = open_checkpoint(tmp_path / name)
        assert (opened.format, opened.config.rope_theta) == ("safetensors", CONFIG.rope_theta)
    for name in ("params.json", "consolidated.safetensors"):
        opened = open_checkpoint(tmp_path / name)
        assert (opened.format, opened.config.rope_theta) == ("raw", 1e6)
        assert opened.notices == ()
    write_gguf(tmp_path / "a.gguf", CONFIG, TENSORS)
    with pytest.raises(CheckpointError, match=r"model\.safetensors, consolidated\.safetensors, a\.gguf; .*config"):
        open_checkpoint(tmp_path)
    (tmp_path / "a.gguf").unlink()
    (tmp_path / "config.json").unlink()
    assert open_checkpoint(tmp_path).format == "raw"


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ([], r"no \*\.safetensors, no consolidated\.\*, no \*\.gguf file and no pytorch_model"),
        (["pytorch_model.bin"], r"config\.json: missing"),
        (["params.json"], r"no \*\.safetensors, no consolidated\.\*, no \*\.gguf file and no pytorch_model"),
        (["consolidated.00.pth"], r"params\.json: missing"),
        (["consolidated.safetensors"], r"params\.json: missing"),
        (["config.json", "model.safetensors.index.json"], r"index\.json: is empty"),
        (["model.safetensors"], r"config\.json: missing"),
    ],
)
def test_folders_without_a_model(tmp_path: Path, files: list[str], named: str) -> None:
    for file in files:
        (tmp_path / file).touch()
    if "config.json" in files:
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("empty", b"", "is empty"),
        ("model.bin", b"\x80\x02 a pickle", "no GGUF, safetensors or torch file"),
        ("model.bin", b"PK\x03\x04 a zip", r"config\.json: missing"),
        ("weights.pth", b"PK\x03\x04 a zip", r"config\.json: missing"),
        ("consolidated.00.pth", b"PK\x03\x04", r"params\.json: missing"),
        ("m.tar.gz", b"\x1f\x8b", "no GGUF, safetensors or torch file"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, name: str, content: bytes, named: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    [
        "./gone",
        "../gone",
        "~/gone",
        "a/b.",
        "",
        "nothing",
        "/no/such/folder",
        "a/b/c",
        "owner/name:file.bin",
        "a\0b",
        "x" * 5000,
    ],
)
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"no such file or folder, and no name on the Hugging Face hub"):
        open_checkpoint(name)


def test_a_revision_is_for_the_hub(tmp_path: Path) -> None:
    for local in (tmp_path, "tiny"):
        with pytest.raises(CheckpointError, match="revision='v1' is for hub repositories"):
            open_checkpoint(local, revision="v1")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
@pytest.mark.parametrize("file", ["pipe", "config.json", "model.safetensors"])
def test_a_fifo_does_not_hang(tmp_path: Path, file: str) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    (tmp_path / file).unlink(missing_ok=True)
    os.mkfifo(tmp_path / file)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "pipe" if file == "pipe" else tmp_path)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Become another user for a while, as root can read every file."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_folders_and_files_without_permission() -> None:
    with TemporaryDirectory() as folder:  # not tmp_path, which other users cannot enter
        Path(folder).chmod(0o755)
        model = Path(folder) / "model"
        write_hf(model, CONFIG, TENSORS)
        with _as_nobody():
            open_checkpoint(model)
        for path in (model / "model.safetensors", model):
            path.chmod(0)
            with _as_nobody(), pytest.raises(CheckpointError, match="Permission denied"):
                open_checkpoint(model)
            path.chmod(0o755)


def test_a_broken_link(tmp_path: Path) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        open_checkpoint(tmp_path)


def _large(layers: int) -> MistralConfig:
    """Write Mistral 7B with fewer layers as a sparse file; 4 layers in bfloat16 are 2.3 GB."""
    return MistralConfig(num_hidden_layers=layers, rope_theta=1e6, sliding_window=None, max_position_embeddings=32768)


def _large_hf(folder: Path) -> Path:
    config, header, end = _large(4), {}, 0
    for name, shape in shapes(config).items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def _large_gguf(folder: Path) -> Path:
    """The metadata of a small file, the tensor infos of a large one."""
    config = _large(4)
    metadata = folder / "metadata.gguf"
    write_gguf(metadata, config, {})
    writer = GGUFWriter(folder / "large.gguf", "llama")
    for field in GGUFReader(metadata).fields.values():
        if field.name.startswith("llama."):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    write_names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    end = 0
    for name, shape in shapes(config).items():
        kind = GGMLQuantizationType.F32 if len(shape) == 1 else GGMLQuantizationType.Q8_0
        size = 4 * shape[0] if len(shape) == 1 else int(np.prod(shape)) // 32 * 34
        # Names that already are HF's pass through `from_gguf` unchanged.
        writer.add_tensor_info(write_names.get(name, name), shape, np.dtype(np.float32), size, kind)
        end += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    path = folder / "large.gguf"
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 32) * 32 + end)
    return path


@pytest.mark.parametrize("make", [_large_hf, _large_gguf])
def test_opening_gigabytes_copies_nothing(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path)
    file = path if path.is_file() else path / "model.safetensors"
    assert file.stat().st_size > 1e9
    tracemalloc.start()
    checkpoint = open_checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6
    assert sum(tensor.nbytes for tensor in set(checkpoint.tensors.values())) > 1e9
    assert not checkpoint.tensors["model.layers.3.self_attn.q_proj.weight"].numpy().any()
    checkpoint = None  # type: ignore[assignment]  # unmap, so that the file's space is free for the next test
    file.unlink()


def test_importing_the_package_is_cheap() -> None:
    """Slow libraries are imported where they are needed; frameworks never."""
    code = "import sys, mistral_portable.weights; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in loaded
    slow = {"gguf", "huggingface_hub", "safetensors", "mistral_common", "torch", "transformers", "numba", "mlx", "jax"}
    assert not slow & set(loaded)

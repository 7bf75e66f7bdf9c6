"""Folders cloned without git-lfs: each file that is a pointer is named in one line, with what to run."""

from pathlib import Path

import numpy as np
import pytest
from weights.files import random_tensors, small_config, write_gguf, write_hf, write_raw

import mistral_portable as mp
from mistral_portable.errors import CheckpointError, ConfigError, MistralPortableError, TokenizerError

CONFIG = small_config()
TENSORS = random_tensors(CONFIG, np.random.default_rng(0))
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:9d1ba9eb3c1a0f0a9d0a5e8cf0f0c3b3a1c0ffee9d1ba9eb3c1a0f0a9d0a5e8c\nsize 4943162336\n"
)
SAID = r"{} is a git-lfs pointer, not the file itself \(4,943,162,336 bytes\); run `git lfs install && git lfs pull`"


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("model-00002-of-00002.safetensors", CheckpointError),
        ("model.safetensors.index.json", CheckpointError),
        ("config.json", ConfigError),
        ("tokenizer.model", TokenizerError),
        ("tekken.json", TokenizerError),
    ],
)
def test_files_of_hugging_face(tmp_path: Path, file: str, kind: type[MistralPortableError]) -> None:
    write_hf(tmp_path, CONFIG, TENSORS, shards=2)
    (tmp_path / file).write_bytes(POINTER)
    with pytest.raises(kind, match=SAID.format(rf".*{file}:?")):
        mp.load(tmp_path, backend="reference")


@pytest.mark.parametrize("file", ["params.json", "consolidated.safetensors"])
def test_mistrals_own_files(tmp_path: Path, file: str) -> None:
    write_raw(tmp_path, CONFIG, TENSORS)
    (tmp_path / file).write_bytes(POINTER)
    with pytest.raises(MistralPortableError, match=SAID.format(rf".*{file}")):
        mp.load(tmp_path, backend="reference")


@pytest.mark.parametrize("name", ["m.gguf", "model.safetensors", "consolidated.00.pth", "mistral.tar", "anything"])
def test_a_file_by_its_path(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=SAID.format(rf".*{name}")):
        mp.load(tmp_path / name)


def test_a_part_of_a_split_gguf(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, split_max_tensors=len(TENSORS) // 2 + 1)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=SAID.format(r".*m-00002-of-00002\.gguf")):
        mp.load(tmp_path / "m-00001-of-00002.gguf")

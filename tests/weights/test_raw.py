"""Mistral's own checkpoints: safetensors, torch files, model-parallel pieces, the tar; refused files."""

import contextlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights.files import bfloat16, random_tensors, raw_params, raw_tensors, small_config, write_raw, write_safetensors

import mistral_portable as mp
from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.tokenizer import load_tokenizer
from mistral_portable.tokenizer.source import TokenizerFile
from mistral_portable.weights import open_checkpoint

CONFIG = small_config(sliding_window=8)
TENSORS = random_tensors(CONFIG, np.random.default_rng(0))
TINY = open_checkpoint("tiny")


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_values_come_back(tmp_path: Path, form: str, dtype: str) -> None:
    write_raw(tmp_path, CONFIG, TENSORS, form, dtype)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.path, checkpoint.format, checkpoint.notices) == (tmp_path, "raw", ())
    assert checkpoint.config.layer_windows == (8, 8)
    assert checkpoint.tensors.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        tensor = checkpoint.tensors[name]
        assert (tensor.name, tensor.shape, tensor.dtype) == (name, values.shape, dtype)
        bits = bfloat16(values).astype(np.uint32) << 16
        expected = bits.view(np.float32) if dtype == "bfloat16" else values.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(tensor.numpy(), expected, err_msg=name)


@settings(max_examples=15)
@given(
    pieces=st.sampled_from([1, 2, 4]),
    kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([8, 24]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_pieces_of_a_model_parallel_checkpoint_are_joined(
    tmp_path_factory: pytest.TempPathFactory, pieces: int, kv_heads: int, head_dim: int, dtype: str
) -> None:
    config = small_config(num_key_value_heads=kv_heads, head_dim=head_dim)
    tensors = random_tensors(config, np.random.default_rng(1))
    folder = tmp_path_factory.mktemp("raw")
    write_raw(folder / "whole", config, tensors, "safetensors", dtype)
    write_raw(folder / "pieces", config, tensors, "pth", dtype, pieces)
    expected = open_checkpoint(folder / "whole").tensors
    for opened in (folder / "pieces", folder / "pieces" / "consolidated.00.pth"):
        tensors_ = open_checkpoint(opened).tensors
        assert tensors_.keys() == expected.keys()
        for name, tensor in tensors_.items():
            assert (tensor.shape, tensor.dtype) == (expected[name].shape, dtype)
            assert tensor.nbytes == expected[name].nbytes
            np.testing.assert_array_equal(tensor.numpy(), expected[name].numpy(), err_msg=name)


def test_pieces_are_quantized_as_they_are_read(tmp_path: Path) -> None:
    write_raw(tmp_path / "whole", CONFIG, TENSORS)
    write_raw(tmp_path / "pieces", CONFIG, TENSORS, "pth", pieces=2)
    whole, pieces = (open_checkpoint(tmp_path / name, quantize="q8_0").tensors for name in ("whole", "pieces"))
    for name, tensor in pieces.items():
        assert tensor.dtype == whole[name].dtype
        np.testing.assert_array_equal(tensor.numpy(), whole[name].numpy())


@pytest.mark.parametrize("broken", ["lacking", "norms", "shapes", "rank", "scalars"])
def test_pieces_that_do_not_fit_together(tmp_path: Path, broken: str) -> None:
    import torch

    write_raw(tmp_path, CONFIG, TENSORS, "pth", pieces=2)
    path = tmp_path / "consolidated.01.pth"
    state: dict[str, Any] = torch.load(path)
    match broken:
        case "lacking":
            del state["layers.0.attention.wq.weight"]
        case "norms":
            state["norm.weight"] += 1
        case "shapes":
            state["layers.0.attention.wq.weight"] = torch.zeros(32, 7)
        case "rank":
            state["layers.0.attention.wo.weight"] = torch.zeros(len(state["layers.0.attention.wo.weight"]))
        case "scalars":
            other = tmp_path / "consolidated.00.pth"
            torch.save(torch.load(other) | {"output.weight": torch.zeros(())}, other)
            state["output.weight"] = torch.zeros(())
    torch.save(state, path)
    message = {"lacking": "in some of", "norms": r"copies of 'model\.norm\.weight' differ"}
    with pytest.raises(CheckpointError, match=message.get(broken, "do not fit")):
        open_checkpoint(tmp_path)


def test_both_kinds_of_files_are_refused_until_one_is_named(tmp_path: Path) -> None:
    write_raw(tmp_path, CONFIG, TENSORS)
    write_raw(tmp_path, CONFIG, TENSORS, "pth", "bfloat16")
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth, consolidated\.safetensors; give the path"):
        open_checkpoint(tmp_path)
    for name, dtype in {"consolidated.00.pth": "bfloat16", "consolidated.safetensors": "float32"}.items():
        assert {tensor.dtype for tensor in open_checkpoint(tmp_path / name).tensors.values()} == {dtype}


def test_weights_in_several_safetensors_files(tmp_path: Path) -> None:
    write_raw(tmp_path, CONFIG, TENSORS)
    (tmp_path / "consolidated.safetensors").unlink()
    items = list(raw_tensors(CONFIG, TENSORS).items())
    for part in (0, 1):
        write_safetensors(tmp_path / f"consolidated-0000{part + 1}-of-00002.safetensors", dict(items[part::2]))
    assert open_checkpoint(tmp_path).tensors.keys() == TENSORS.keys()
    write_safetensors(tmp_path / "consolidated-00002-of-00002.safetensors", dict(items))
    with pytest.raises(CheckpointError, match="is stored twice"):
        open_checkpoint(tmp_path)


def test_a_weight_file_of_any_name(tmp_path: Path) -> None:
    write_raw(tmp_path, CONFIG, TENSORS)
    (tmp_path / "consolidated.safetensors").rename(tmp_path / "weights")
    assert open_checkpoint(tmp_path / "weights").tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("key", ["moe", "yarn", "llama_4_scaling"])
def test_parameters_that_are_not_supported_are_named(tmp_path: Path, key: str) -> None:
    write_raw(tmp_path, CONFIG, TENSORS)
    (tmp_path / "params.json").write_text(json.dumps(raw_params(CONFIG) | {key: {"a": 1}}))
    with pytest.raises(ConfigError, match=rf"params\.json: {key}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"vision_encoder": {"hidden_size": 8}}, ""),
        ({"multimodal": {"vision_encoder_args": {"hidden_size": 8}}}, ""),
        ({"multimodal": {"whisper_model_args": None}, "audio_encoder": None}, ""),
        ({"multimodal": {"whisper_model_args": {"encoder_args": {"dim": 8}}}}, "whisper_model_args"),  # Voxtral's
        ({"multimodal": {"audio_model_args": {"dim": 8}}}, "audio_model_args"),
        ({"audio_encoder": {"dim": 8}}, "audio_encoder"),
    ],
)
def test_the_text_of_vision_models_runs_and_sound_is_refused(tmp_path: Path, more: dict[str, Any], named: str) -> None:
    """The same as in Hugging Face's folders (`test_safetensors.py`)."""
    write_raw(tmp_path, CONFIG, TENSORS)
    (tmp_path / "params.json").write_text(json.dumps(raw_params(CONFIG) | more))
    refused = pytest.raises(ConfigError, match=rf"params\.json: {named} is not supported: there is no sound here")
    with refused if named else contextlib.nullcontext():
        assert open_checkpoint(tmp_path).config.hidden_size == CONFIG.hidden_size


def write_tar(path: Path, members: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] | None = None) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if change:
                change(info)
            archive.addfile(info, io.BytesIO(content))


def files(folder: Path, prefix: str) -> dict[str, bytes]:
    return {f"{prefix}{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize("prefix", ["", "./", "mistral-7B-v0.1/"])
def test_a_tar_is_read_in_place(tmp_path: Path, form: str, prefix: str) -> None:
    write_raw(tmp_path / "raw", CONFIG, TENSORS, form, pieces=2)
    (tmp_path / "raw" / "RELEASE").write_bytes(b"v0.1")
    assert isinstance(TINY.tokenizer, TokenizerFile)
    (tmp_path / "raw" / "tokenizer.model").write_bytes(TINY.tokenizer.path.read_bytes())
    path = tmp_path / "m.tar"
    write_tar(path, files(tmp_path / "raw", prefix))
    before = set(tmp_path.rglob("*"))
    checkpoint = open_checkpoint(path)
    expected = open_checkpoint(tmp_path / "raw")
    assert (checkpoint.path, checkpoint.format, checkpoint.config) == (path, "raw", expected.config)
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].numpy(), tensor.numpy())
    assert checkpoint.tokenizer
    assert load_tokenizer(checkpoint.tokenizer).encode("Once upon") == load_tokenizer(TINY.tokenizer).encode(
        "Once upon"
    )
    assert set(tmp_path.rglob("*")) == before


def test_tiny_as_a_tar_gives_the_same_text(tmp_path: Path) -> None:
    tensors = {name: tensor.numpy() for name, tensor in TINY.tensors.items()}
    write_raw(tmp_path / "raw", TINY.config, tensors, "pth", "bfloat16")
    assert isinstance(TINY.tokenizer, TokenizerFile)
    (tmp_path / "raw" / "tokenizer.model.v3").write_bytes(TINY.tokenizer.path.read_bytes())
    write_tar(tmp_path / "tiny.tar", files(tmp_path / "raw", "tiny/"))
    run, expected = (
        mp.load(model, backend="reference").generate("Once upon a time", max_tokens=80, temperature=0)
        for model in (tmp_path / "tiny.tar", "tiny")
    )
    assert run.text == expected.text


def _link(info: tarfile.TarInfo) -> None:
    if info.name == "tokenizer.model":
        info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0


def _device(info: tarfile.TarInfo) -> None:
    if info.name == "tokenizer.model":
        info.type, info.size = tarfile.CHRTYPE, 0


@pytest.mark.parametrize(
    ("more", "change", "named"),
    [
        ({"../escaped": b"x"}, None, r"'\.\./escaped' has a path outside"),
        ({"a/../../escaped": b"x"}, None, "has a path outside"),
        ({"/etc/passwd": b"x"}, None, r"'/etc/passwd' has a path outside"),
        ({"tokenizer.model": b""}, _link, "is not a regular file"),
        ({"tokenizer.model": b""}, _device, "is not a regular file"),
        ({"./params.json": b"{}"}, None, "is stored twice"),
        ({"other/params.json": b"{}"}, None, r"holds 2 params\.json"),
        ({f"{n}": b"" for n in range(1001)}, None, "more than 1000 members"),
    ],
    ids=["parent", "hidden parent", "absolute", "link", "device", "twice", "two", "many"],
)
def test_tars_that_are_refused(
    tmp_path: Path, more: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] | None, named: str
) -> None:
    write_raw(tmp_path / "raw", CONFIG, TENSORS)
    write_tar(tmp_path / "m.tar", files(tmp_path / "raw", "") | more, change)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(tmp_path / "m.tar")
    assert set(tmp_path.rglob("*")) == before


def test_a_tar_without_a_model(tmp_path: Path) -> None:
    write_tar(tmp_path / "m.tar", {"readme": b"x"})
    with pytest.raises(CheckpointError, match=r"holds 0 params\.json"):
        open_checkpoint(tmp_path / "m.tar")


@pytest.mark.parametrize("keep", [600, 2000, -20_000])
def test_truncated_tars(tmp_path: Path, keep: int) -> None:
    write_raw(tmp_path / "raw", CONFIG, TENSORS)
    write_tar(tmp_path / "m.tar", files(tmp_path / "raw", ""))
    (tmp_path / "m.tar").write_bytes((tmp_path / "m.tar").read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"m\.tar"):
        open_checkpoint(tmp_path / "m.tar")


@pytest.mark.parametrize("size", [2**33, 2**62, -512])
def test_a_member_that_lies_about_its_size(tmp_path: Path, size: int) -> None:
    """A GNU header: sizes beyond 8 GiB, and below 0, are binary."""
    write_tar(tmp_path / "m.tar", {"params.json": b"{}"})
    data = bytearray((tmp_path / "m.tar").read_bytes())
    sign = 0x80 if size > 0 else 0xFF
    data[124:136] = bytes([sign]) + size.to_bytes(11, "big", signed=True)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "m.tar").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"m\.tar"):
        open_checkpoint(tmp_path / "m.tar")


@pytest.mark.parametrize("kind", [b"L", b"x", b"g"], ids=["long name", "pax", "global pax"])
def test_a_header_that_lies_about_its_size_allocates_nothing(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("params.json")
    info.type, info.size = kind, 2**31
    path = tmp_path / "m.tar"
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**31 + 1024)  # a sparse file: the bytes exist
    with pytest.raises(CheckpointError, match="at most 1048576 are accepted"):
        open_checkpoint(path)


def test_headers_that_the_library_stumbles_over(tmp_path: Path) -> None:
    """A sparse file whose further headers are missing; long names of long names."""
    info = tarfile.TarInfo("params.json")
    info.type = tarfile.GNUTYPE_SPARSE
    sparse = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    sparse[482] = 1
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    name = tarfile.TarInfo("params.json")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 1
    chain = (name.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")) * 2000
    for content in (bytes(sparse), chain):
        (tmp_path / "m.tar").write_bytes(content)
        with pytest.raises(CheckpointError, match="not a valid tar"):
            open_checkpoint(tmp_path / "m.tar")

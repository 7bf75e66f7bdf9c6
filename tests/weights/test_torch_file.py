"""Torch files without torch: files of torch.save are read, and no pickle is ever run."""

import os
import pickle
import struct
import time
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_portable.errors import CheckpointError
from mistral_portable.weights.source import map_file
from mistral_portable.weights.torch_file import read_torch


def read(path: Path) -> Any:
    return {tensor.name: tensor for tensor in read_torch(map_file(path), str(path))}


@settings(max_examples=30)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    protocol=st.sampled_from([2, 3, 4, 5]),
    kind=st.sampled_from(["dict", "ordered", "module", "shared"]),
    seed=st.integers(0, 99),
)
def test_what_torch_saves_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    dtype: torch.dtype,
    protocol: int,
    kind: str,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("torch") / "m.pth"
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {
        f"layer.{i}.weight": torch.randn(shape, generator=generator).to(dtype) for i, shape in enumerate(shapes)
    }
    if kind == "ordered":
        state = OrderedDict(state)
    if kind == "module":  # its state_dict has _metadata
        state = torch.nn.Linear(3, 2).to(dtype).state_dict()
    if kind == "shared":  # views of one storage, at offsets
        whole = torch.randn(12, generator=generator).to(dtype)
        state = {"a": whole[:4], "b": whole[4:].view(2, 4), "c": whole}
    torch.save(state, path, pickle_protocol=protocol)
    found = read(path)
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert (found[name].shape, found[name].dtype) == (tuple(tensor.shape), str(dtype).removeprefix("torch."))
        np.testing.assert_array_equal(found[name].numpy(), tensor.float().numpy())


@pytest.mark.parametrize("kind", ["float64", "int64", "int32", "int16", "int8", "uint8", "bool"])
def test_other_types_keep_their_values(tmp_path: Path, kind: str) -> None:
    values = torch.tensor([[1, 0, 3], [4, 5, 0]]).to(getattr(torch, kind))
    torch.save({"w": values}, tmp_path / "m.pth")
    found = read(tmp_path / "m.pth")["w"]
    assert found.dtype == kind
    np.testing.assert_array_equal(found.array, values.numpy())


def test_parameters_are_tensors(tmp_path: Path) -> None:
    torch.save({"w": torch.nn.Parameter(torch.ones(2, 3))}, tmp_path / "m.pth")
    assert read(tmp_path / "m.pth")["w"].numpy().tolist() == [[1, 1, 1], [1, 1, 1]]


class Boom:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    ("state", "named"),
    [
        (lambda path: {"w": Boom(path)}, "(posix|nt) system"),
        (lambda path: {"w": torch.ones(2, dtype=torch.complex64)}, "ComplexFloatStorage"),
        (lambda path: {"w": torch.ones(2, 3).T}, "not contiguous"),
        (lambda path: {"w": torch.ones(1).expand(2**40)}, "not contiguous"),
        (lambda path: {"w": 3}, "'w' is not a tensor"),
        (lambda path: {"model": {"w": torch.ones(2)}}, "'model' is not a tensor"),
        (lambda path: {3: torch.ones(2)}, "keys are not strings"),
        (lambda path: [torch.ones(2)], "APPEND|no dict of tensors"),
        (lambda path: torch.ones(2).to_sparse(), "sparse"),
    ],
    ids=["code", "complex", "transposed", "expanded", "number", "nested", "keys", "list", "sparse"],
)
def test_anything_else_is_refused_and_never_run(tmp_path: Path, state: Any, named: str) -> None:
    witness = tmp_path / "it ran"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(state(witness), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=named):
        read(tmp_path / "m.pth")
    assert not witness.exists()


def write_zip(path: Path, pickled: bytes, more: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("m/data.pkl", pickled)
        for name, content in more.items():
            archive.writestr(f"m/{name}", content)


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"


def tensor_pickle(sizes: bytes, strides: bytes, offset: bytes = b"K\x00") -> bytes:
    """{"w": a tensor with these opcodes for its shape, strides and offset}, as torch writes it."""
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + offset + sizes + strides + b"\x89}tR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + call + b"s."


HUGE = b"\x8a\x08" + struct.pack("<q", 2**62)


@pytest.mark.parametrize(
    ("pickled", "named"),
    [
        (b"", "exhausted before seeing STOP"),
        (b"\x80\x02}", "exhausted before seeing STOP"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02t.", "damaged"),
        (b"cos\nsystem\n.", "'os system', which is never loaded"),
        (b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.", "never loaded"),
        (b"ctorch\nFloatStorage\n(tR.", "not a function"),
        (b"\x80\x02]q\x00h\x00a.", "APPEND"),
        (b"(lp0\n.", "LIST"),
        (b"cos\nsystem\n\x81.", "never loaded"),
        (b"X\xff\xff\xff\x7fab.", "pickle"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.", "pickle"),
        (b"\x8b\xff\xff\xff\x7fab.", "pickle"),
        (b"}r\xff\xff\xff\xff.", "does not open"),
        (b"(" * 10_000 + b"t" * 10_000 + b".", "no dict"),
        (b")" + b"\x85" * 100_000 + b".", "no dict"),
        (b")" + b"2\x86" * 60 + b".", "DUP"),
        (b")q\x00" + b"h\x00h\x00\x86q\x00" * 200 + b"}h\x00K\x01s.", "damaged|not strings"),
        (tensor_pickle(HUGE + b"\x85", b"K\x01\x85"), "has the shape"),
        (tensor_pickle(b"J\xff\xff\xff\x7f\x85", b"K\x01\x85"), "missing or too short"),
        (tensor_pickle(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), "has the shape"),
        (tensor_pickle(b"K\x02K\x02\x86", b"K\x02\x85"), "not contiguous"),
        (tensor_pickle(b"K\x02\x85", b"K\x00\x85"), "not contiguous"),
        (tensor_pickle(b"K\x02\x85", b"K\x01\x85", HUGE), "missing or too short"),
        (tensor_pickle(b"K\x02\x85", b"K\x01\x85", b"J\xff\xff\xff\xff"), "not a storage"),
        (tensor_pickle(b"(" + b"K\x01" * 99 + b"t", b"(" + b"K\x01" * 99 + b"t"), "has the shape"),
    ],
)
def test_hostile_pickles(tmp_path: Path, pickled: bytes, named: str) -> None:
    write_zip(tmp_path / "m.pth", pickled, {"data/0": b"\0" * 4})
    tracemalloc.start()
    begin = time.process_time()
    if named == "does not open":  # a memo index that would make CPython's unpickler allocate gigabytes
        assert read(tmp_path / "m.pth") == {}
    else:
        with pytest.raises(CheckpointError, match=named):
            read(tmp_path / "m.pth")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32e6
    assert time.process_time() - begin < 20


def test_the_tensor_of_the_hostile_tests_is_a_tensor(tmp_path: Path) -> None:
    write_zip(tmp_path / "m.pth", tensor_pickle(b"K\x01\x85", b"K\x01\x85"), {"data/0": struct.pack("<f", 7)})
    assert read(tmp_path / "m.pth")["w"].numpy().tolist() == [7]


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "m.pth", b"." * 2**24, {}, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "m.pth").stat().st_size < 2**16
    with pytest.raises(CheckpointError, match="is compressed"):
        read(tmp_path / "m.pth")


def test_a_large_pickle_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "m.pth", b"N" * (2**20 + 1), {})
    with pytest.raises(CheckpointError, match="at most 1048576 are accepted"):
        read(tmp_path / "m.pth")


def test_a_large_directory_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        for number in range(20):
            archive.writestr(f"m/{number}" + "x" * 60_000, b"")
    with pytest.raises(CheckpointError, match="at most 1048576 are accepted"):
        read(tmp_path / "m.pth")


def test_members_that_are_stored_twice_or_missing(tmp_path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("m/data.pkl", b"}.")
        archive.writestr("m/data.pkl", b"}.")
    with pytest.raises(CheckpointError, match="stored twice"):
        read(tmp_path / "m.pth")
    write_zip(tmp_path / "n.pth", tensor_pickle(b"K\x01\x85", b"K\x01\x85"), {})
    with pytest.raises(CheckpointError, match="missing or too short"):
        read(tmp_path / "n.pth")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, keep: float) -> None:
    torch.save({"w": torch.ones(100)}, tmp_path / "m.pth")
    data = (tmp_path / "m.pth").read_bytes()
    (tmp_path / "m.pth").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CheckpointError, match=r"m\.pth: not a torch file"):
        read(tmp_path / "m.pth")


def test_big_endian_and_old_files_are_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "m.pth", b"}.", {"byteorder": b"big"})
    with pytest.raises(CheckpointError, match="not little-endian"):
        read(tmp_path / "m.pth")
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="no zip file, as torch"):
        read(tmp_path / "old.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match="no zip file, as torch"):
        read(tmp_path / "plain.pth")

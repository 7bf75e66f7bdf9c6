"""llama.cpp's importance matrices: both file formats, their effect, and a comparison with llama.cpp itself."""

import importlib.util
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from weights.damage import Damage, damage

import mistral_portable as mp
from mistral_portable import transformers
from mistral_portable.errors import InputError
from mistral_portable.quantization import MIXTURES
from mistral_portable.quantization.imatrix import read_imatrix
from mistral_portable.weights import open_checkpoint
from mistral_portable.weights.experts import stacked_name
from mistral_portable.weights.names import to_gguf
from tools.llama_cpp_quantizer import quantize_by_llama_cpp

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Squares = Mapping[str, NDArray[np.float32]]
TINY = open_checkpoint("tiny")


def squares(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Mean squares for the matrices of `tiny`, by GGUF name, [1, columns]: some are a hundred times larger."""
    random = np.random.default_rng(seed)
    return {
        to_gguf(name): random.lognormal(0, 1.5, (1, tensor.shape[1])).astype(np.float32)
        for name, tensor in TINY.tensors.items()
        if len(tensor.shape) == 2 and "embed" not in name
    }


def write_gguf(path: Path, means: Squares, counts: int = 640) -> None:
    """Write a file like `IMatrixCollector::save_imatrix` of llama.cpp."""
    writer = GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["some.txt"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 320)
    for name, values in means.items():
        writer.add_tensor(f"{name}.in_sum2", values * np.float32(counts))
        writer.add_tensor(f"{name}.counts", np.full((len(values), 1), counts, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_older(path: Path, means: Squares, calls: int = 5, trailer: bool = True) -> None:
    """Write a file like `save_imatrix_legacy` of llama.cpp."""
    data = struct.pack("<i", len(means))
    for name, values in means.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, values.size)
        data += (values * np.float32(calls)).astype("<f4").tobytes()
    path.write_bytes(data + (struct.pack("<ii", calls, 8) + b"some.txt" if trailer else b""))


WRITERS: dict[str, Callable[[Path, Squares], None]] = {"imatrix.gguf": write_gguf, "imatrix.dat": write_older}
EVERY_KIND = pytest.mark.parametrize("file", WRITERS)


@EVERY_KIND
def test_what_is_read_are_mean_squares_relative_to_their_mean(tmp_path: Path, file: str) -> None:
    means = squares()
    WRITERS[file](tmp_path / file, means)
    found = read_imatrix(tmp_path / file, 0)
    assert {to_gguf(name) for name in found} == set(means)
    for name, values in found.items():
        expected = means[to_gguf(name)][0]
        np.testing.assert_allclose(values, expected / expected.mean(), rtol=1e-5, atol=1e-6)


@EVERY_KIND
def test_experts_and_those_that_were_never_chosen(tmp_path: Path, file: str) -> None:
    means = np.array([[1, 3], [4, 4], [0, 2], [5, 5]], np.float32)
    WRITERS[file](tmp_path / file, {"blk.1.ffn_down_exps.weight": means})
    found = read_imatrix(tmp_path / file, 4)
    assert [*found] == [f"model.layers.1.block_sparse_moe.experts.{expert}.w2.weight" for expert in range(4)]
    expected = np.array([[0.5, 1.5], [1, 1], [1e-6, 2], [1, 1]])
    np.testing.assert_allclose(np.array([*found.values()]), expected, rtol=1e-6)

    writer = GGUFWriter(tmp_path / "never.gguf", "")
    writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", np.array([[0, 0], [1, 3]], np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight.counts", np.array([[0], [2]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert [values.tolist() for values in read_imatrix(tmp_path / "never.gguf", 2).values()] == [[1, 1], [0.5, 1.5]]


def test_both_kinds_lower_the_errors_that_count_alike(tmp_path: Path) -> None:
    means = squares()
    for file, write in WRITERS.items():
        write(tmp_path / file, means)
    made = [
        open_checkpoint(mp.quantize("tiny", tmp_path / f"{kind}.gguf", "q3_k_s", imatrix=kind and tmp_path / kind))
        for kind in (*WRITERS, None)
    ]
    for name, tensor in TINY.tensors.items():
        if to_gguf(name) in means:
            off = [np.square(each.tensors[name].numpy() - tensor.numpy()) @ means[to_gguf(name)][0] for each in made]
            # Not bit for bit: the older file stores sums, whose means are rounded.
            assert off[0].sum() == pytest.approx(off[1].sum(), rel=1e-3)
            assert off[0].sum() < off[2].sum()


def test_experts_are_quantized_by_it(tmp_path: Path) -> None:
    config = transformers.MistralConfig.from_pretrained(
        "tiny", num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2
    )
    transformers.MistralForCausalLM(config, backend="reference").save_pretrained(tmp_path / "hf")
    exact, random = open_checkpoint(tmp_path / "hf").tensors, np.random.default_rng(0)
    each = {
        name: random.lognormal(0, 1.5, tensor.shape[1]).astype("f4")
        for name, tensor in exact.items()
        if ".experts." in name
    }
    together: dict[str, list[NDArray[np.float32]]] = {}
    for name, values in each.items():
        together.setdefault(str(stacked_name(name)), []).append(values)
    write_gguf(tmp_path / "imatrix.gguf", {name: np.array(values) for name, values in together.items()})
    plain, counted = (
        open_checkpoint(mp.quantize(tmp_path / "hf", tmp_path / f"{name}.gguf", "q3_k_s", imatrix=path)).tensors
        for name, path in (("plain", None), ("counted", tmp_path / "imatrix.gguf"))
    )
    errors = [
        [float((np.square(made[name].numpy() - exact[name].numpy()) @ each[name]).sum()) for name in each]
        for made in (plain, counted)
    ]
    assert all(now < before for before, now in zip(*errors, strict=True))


@pytest.mark.filterwarnings("default::UserWarning")
def test_what_is_not_in_it_is_said(tmp_path: Path) -> None:
    means = squares()
    del means["output.weight"], means["blk.2.ffn_up.weight"]
    write_gguf(tmp_path / "i.gguf", means)
    lacking = r"i\.gguf has no entry for blk\.2\.ffn_up\.weight; output\.weight: all of their columns get the same"
    with pytest.warns(UserWarning, match=lacking):
        mp.quantize("tiny", tmp_path / "m.gguf", "q4_k_m", imatrix=tmp_path / "i.gguf")


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    means = squares()
    write_gguf(tmp_path / "narrow.gguf", {name: values[:, 1:] for name, values in means.items()})
    write_gguf(tmp_path / "foreign.gguf", {f"v.{name}": values for name, values in means.items()})
    write_gguf(tmp_path / "nan.gguf", {name: values * np.nan for name, values in means.items()})
    write_older(tmp_path / "negative.dat", {name: -values for name, values in means.items()})
    (tmp_path / "text.txt").write_text("Once upon a time")
    (tmp_path / "empty.dat").write_bytes(b"")
    mp.convert("tiny", tmp_path / "model.gguf", "gguf")
    expected = {
        "narrow.gguf": "belongs to another model: it has",
        "foreign.gguf": "holds none of this model's matrices, but 'v.",
        "nan.gguf": "not finite, or below 0",
        "negative.dat": "not finite, or below 0",
        "text.txt": "not an importance matrix of llama.cpp: it is truncated, or something else",
        "empty.dat": "is empty",
        "model.gguf": "a GGUF file without any .in_sum2",
        "none.gguf": "cannot be read",
    }
    for name, words in expected.items():
        with pytest.raises(InputError) as caught:
            mp.quantize("tiny", tmp_path / "out" / "q.gguf", "q4_0", imatrix=tmp_path / name)
        assert words in str(caught.value), name
        assert str(caught.value).isprintable()
        assert not (tmp_path / "out").exists()
    write_gguf(tmp_path / "i.gguf", means)
    with pytest.raises(InputError, match="give one of them"):
        mp.quantize("tiny", tmp_path / "q.gguf", "q4_0", imatrix=tmp_path / "i.gguf", calibrate=tmp_path / "text.txt")


def _read_or_explained(path: Path) -> str:
    explanation = ""
    try:
        assert all(np.isfinite(values).all() for values in read_imatrix(path, 2).values())
    except InputError as error:
        explanation = str(error)
    return explanation


@EVERY_KIND
@given(damage=damage(header=400))
def test_damaged_files(tmp_path_factory: pytest.TempPathFactory, file: str, damage: list[Damage]) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged-{file}"
    WRITERS[file](path, {name: values for name, values in squares().items() if name.startswith("blk.0.")})
    data = path.read_bytes()
    for edit in damage:
        data = edit(data)
    path.write_bytes(data)
    assert not _read_or_explained(path) or _read_or_explained(path).isprintable()


@given(data=st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.dat"
    path.write_bytes(data)
    assert not _read_or_explained(path) or _read_or_explained(path).isprintable()


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python takes 12 minutes to build: pip install 'mistral-portable[bench]', then run this test",
)
def test_beside_llama_cpp(tmp_path: Path) -> None:
    """With the same importances llama.cpp selects the same types, and its weighted errors are no smaller."""
    means, source = squares(), mp.convert("tiny", tmp_path / "f.gguf", "gguf")
    write_gguf(tmp_path / "i.gguf", means)
    for mixture, rules in MIXTURES.items():
        theirs = tmp_path / f"{mixture}-theirs.gguf"
        quantize_by_llama_cpp(source, theirs, rules.file_type, means)
        ours = mp.quantize(source, tmp_path / f"{mixture}-ours.gguf", mixture, imatrix=tmp_path / "i.gguf")
        found, expected = (
            {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors} for path in (ours, theirs)
        )
        assert found == expected
        opened = [open_checkpoint(path).tensors for path in (ours, theirs)]
        for name, tensor in TINY.tensors.items():
            counted = means.get(to_gguf(name)) if len(tensor.shape) == 2 else None
            if counted is not None:
                off = [float((np.square(made[name].numpy() - tensor.numpy()) @ counted[0]).sum()) for made in opened]
                assert off[0] <= off[1], (mixture, name)

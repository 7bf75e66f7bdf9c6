"""`convert` with adapters: what is added, in which type, with which tokenizer, and what is refused."""

import json
import shutil
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters.files import HEAD, TABLE, delta, linears, random_changes, write_peft
from cli.processes import invoke
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizer.finetunes import CHATML, write_finetune
from tokenizer.vocabularies import TINY
from weights.files import bfloat16, random_tensors, small_config, write_gguf, write_hf, write_raw

import mistral_portable as mp
from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError, InputError
from mistral_portable.weights import DenseTensor, open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*has no tokenizer that can be carried over")

CONFIG = small_config()
TENSORS = random_tensors(CONFIG, np.random.default_rng(0))
CHANGES = random_changes(CONFIG, linears(CONFIG), 3, np.random.default_rng(1))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_hf(tmp_path / "base", CONFIG, TENSORS)
    return tmp_path / "base"


def merged(source: Path, adapters: list[tuple[Path, float]], to: str = "hf", **options: Any) -> Path:
    """The converted model; its warnings are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mp.convert(source, source.parent / f"merged {to}", to, merge_adapters=adapters, **options)


def values(path: Path) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.numpy() for name, tensor in open_checkpoint(path).tensors.items()}


def close(found: NDArray[np.float32], expected: NDArray[np.float64]) -> bool:
    """Whether both are equal but for float32 rounding of sums of a few products."""
    return bool(np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("to", ["hf", "gguf", "raw", "mlx"])
def test_to_every_format(tmp_path: Path, base: Path, to: str) -> None:
    adapter = write_peft(tmp_path / "adapter", CHANGES, 2.0)
    found = values(merged(base, [(adapter, 1.0)], to))
    for name, weight in TENSORS.items():
        expected = weight + delta(CHANGES[name], 2.0) if name in CHANGES else weight.astype(np.float64)
        assert close(found[name], expected), name


@settings(max_examples=10)  # each converts a model
@given(
    source=st.sampled_from(["hf", "raw", "pieces", "gguf"]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    factors=st.lists(st.sampled_from([1.0, -0.5, 0.0, 3.0]), min_size=1, max_size=3),
)
def test_sums_are_rounded_once_to_the_stored_type(
    tmp_path_factory: pytest.TempPathFactory, source: str, dtype: str, factors: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("sums")
    if source == "gguf":
        kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
        path = folder / "m.gguf"
        write_gguf(path, CONFIG, TENSORS, kind)
    elif source == "hf":
        path = folder / "m"
        write_hf(path, CONFIG, TENSORS, dtype=dtype)
    else:
        path = folder / "m"
        write_raw(
            path, CONFIG, TENSORS, "safetensors" if source == "raw" else "pth", dtype, 2 if source != "raw" else 1
        )
    rng = np.random.default_rng(2)
    several = [random_changes(CONFIG, linears(CONFIG), 2, rng) for _ in factors]
    adapters = [(write_peft(folder / str(n), each), factors[n]) for n, each in enumerate(several)]
    before, after = open_checkpoint(path).tensors, open_checkpoint(merged(path, adapters)).tensors
    for name in linears(CONFIG):
        assert after[name].dtype == dtype
        terms = [delta(each[name], 2.0 * factor) for each, factor in zip(several, factors, strict=True)]
        expected = before[name].numpy(np.float64) + sum(terms)
        digits = {"float32": 23, "float16": 10, "bfloat16": 7}[dtype]
        sizes = np.abs(before[name].numpy(np.float64)) + sum(np.abs(term) for term in terms)
        allowed = 2.0 ** -(digits + 1) * np.abs(expected) + 16 * 2.0**-24 * (sizes + 1) + 2.0**-25
        assert (np.abs(after[name].numpy(np.float64) - expected) <= allowed).all(), name


def test_dtype_chooses_the_written_type(tmp_path: Path, base: Path) -> None:
    adapter = write_peft(tmp_path / "adapter", CHANGES, 2.0)
    found = open_checkpoint(merged(base, [(adapter, 1.0)], dtype="bfloat16")).tensors
    exact = open_checkpoint(merged(base, [(adapter, 1.0)], "mlx")).tensors
    for name in linears(CONFIG):
        tensor = found[name]
        assert isinstance(tensor, DenseTensor)
        assert np.array_equal(tensor.raw(), bfloat16(exact[name].numpy()))


def test_packed_weights_are_merged_only_if_they_may_be_unpacked(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, "Q8_0")
    adapter = write_peft(tmp_path / "adapter", CHANGES, 2.0)
    with pytest.raises(
        InputError, match=r"is packed \(q8_0\), and adapters are merged into floats: .*--dtype bfloat16"
    ):
        merged(tmp_path / "m.gguf", [(adapter, 1.0)])
    before, after = values(tmp_path / "m.gguf"), values(merged(tmp_path / "m.gguf", [(adapter, 1.0)], dtype="float32"))
    for name in linears(CONFIG):
        assert close(after[name], before[name] + delta(CHANGES[name], 2.0))


def test_only_the_packed_weights_that_change_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, "Q8_0")
    whole = {TABLE: TENSORS[TABLE] + 1}
    out = merged(tmp_path / "m.gguf", [(write_peft(tmp_path / "a", {}, whole=whole), 1.0)], "gguf")
    assert open_checkpoint(out).tensors[HEAD].dtype == "q8_0"
    assert np.array_equal(values(out)[TABLE], whole[TABLE])


def test_quantize_after_merging(tmp_path: Path, base: Path) -> None:
    adapter = write_peft(tmp_path / "adapter", CHANGES, 2.0)
    found = values(mp.quantize(merged(base, [(adapter, 1.0)]), tmp_path / "q.gguf", "q8_0"))
    for name in linears(CONFIG):
        expected = TENSORS[name] + delta(CHANGES[name], 2.0)
        assert np.abs(found[name] - expected).max() <= np.abs(expected).max() / 127


def test_whole_tables_replace_and_take_the_stored_type(tmp_path: Path) -> None:
    write_hf(tmp_path / "base", CONFIG, TENSORS, dtype="bfloat16")
    whole = {TABLE: TENSORS[TABLE] * 3, HEAD: TENSORS[HEAD] - 1}
    adapter = write_peft(tmp_path / "adapter", {}, whole=whole)
    found = open_checkpoint(merged(tmp_path / "base", [(adapter, 0.25)])).tensors
    for name, table in whole.items():
        tensor = found[name]
        assert isinstance(tensor, DenseTensor)
        assert (tensor.dtype, tensor.raw().tobytes()) == ("bfloat16", bfloat16(table).tobytes())


def write_grown(folder: Path, config: MistralConfig, rows: int) -> dict[str, NDArray[np.float32]]:
    """Write an adapter whose tables have this number of rows; returns them."""
    rng = np.random.default_rng(3)
    shape = rows, config.hidden_size
    whole = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name in (TABLE, HEAD)}
    write_peft(folder, {}, whole=whole)
    return whole


@pytest.mark.parametrize("to", ["hf", "gguf"])
@pytest.mark.parametrize("source", ["hf", "gguf"])
def test_added_tokens_come_with_the_adapters_tokenizer(tmp_path: Path, to: str, source: str) -> None:
    config = small_config(vocab_size=1024)
    tensors = random_tensors(config, np.random.default_rng(0))
    base = tmp_path / "base"
    write_hf(base, config, tensors)
    shutil.copyfile(TINY, base / "tokenizer.model")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    if source == "gguf":
        base = merged(base, [], "gguf").rename(tmp_path / "base.gguf")
    write_finetune(tmp_path / "adapter", "listed", CHATML)
    (tmp_path / "adapter" / "config.json").unlink()
    whole = write_grown(tmp_path / "adapter", config, 1026)
    with pytest.warns(UserWarning, match="the tokenizer files of .*adapter are taken"):
        out = mp.convert(base, tmp_path / f"out {to}", to, merge_adapters=[(tmp_path / "adapter", 1.0)])
    opened = open_checkpoint(out)
    assert opened.config.vocab_size == 1026
    assert 7 in opened.ends or 7 in opened.config.eos_token_ids
    assert np.array_equal(opened.tensors[TABLE].numpy(), whole[TABLE])
    with mp.load(out, backend="reference", dtype="float32") as model:
        chat = model.tokenizer.chat([{"role": "user", "content": "Hi"}])
        assert {1024, 1025} <= set(chat)
    assert not (out.parent / "config.json").exists()


def test_added_tokens_without_tokenizer_files(tmp_path: Path, base: Path) -> None:
    write_grown(tmp_path / "adapter", CONFIG, 98)
    with pytest.warns(UserWarning, match="changes the vocabulary and has no tokenizer files"):
        out = mp.convert(base, tmp_path / "out", "hf", merge_adapters=[(tmp_path / "adapter", 1.0)])
    assert open_checkpoint(out).config.vocab_size == 98


def test_a_chat_template_that_is_not_taken_is_named(tmp_path: Path, base: Path) -> None:
    adapter = write_peft(tmp_path / "adapter", CHANGES)
    (adapter / "chat_template.jinja").write_text(CHATML)
    with pytest.warns(UserWarning, match="adapter has a chat template, which is not taken, .*--chat-template FILE"):
        mp.convert(base, tmp_path / "out", "hf", merge_adapters=[(adapter, 1.0)])
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_a_grown_table_of_a_tied_model_is_its_head_too(tmp_path: Path) -> None:
    config = small_config(tie_word_embeddings=True)
    write_hf(tmp_path / "base", config, random_tensors(config, np.random.default_rng(0)))
    whole = {TABLE: np.ones((98, 64), np.float32)}
    out = merged(tmp_path / "base", [(write_peft(tmp_path / "adapter", {}, whole=whole), 1.0)])
    assert open_checkpoint(out).config.tie_word_embeddings
    assert np.array_equal(values(out)[TABLE], whole[TABLE])


def test_adapters_that_do_not_fit_together(tmp_path: Path, base: Path) -> None:
    write_grown(tmp_path / "grown", CONFIG, 98)
    one = write_peft(tmp_path / "one", {}, whole={TABLE: np.ones((98, 64), np.float32)})
    head = write_peft(tmp_path / "head", {HEAD: CHANGES[HEAD]})
    for adapters, words in (
        (
            [tmp_path / "grown", one],
            "a second adapter that replaces model.embed_tokens.weight, by other values; merge one",
        ),
        ([one], "the embedding table has 98 rows and lm_head 96: save both in the adapter"),
        ([tmp_path / "grown", head], "has the shape (96, 64), the weight (98, 64): another adapter changes"),
    ):
        with pytest.raises(InputError) as refused:
            merged(base, [(path, 1.0) for path in adapters])
        assert words in str(refused.value)
    assert not (tmp_path / "merged hf").exists()


def test_two_adapters_may_bring_the_same_table(tmp_path: Path, base: Path) -> None:
    """PEFT saves the model's own table with each adapter that changes it."""
    changes = {TABLE: CHANGES[TABLE]}
    table = {"model.embed_tokens.base_layer.weight": TENSORS[TABLE]}
    adapters = [(write_peft(tmp_path / name, changes, whole=table), 1.0) for name in ("one", "other")]
    assert close(values(merged(base, adapters))[TABLE], TENSORS[TABLE] + delta(CHANGES[TABLE], 4.0))


def test_sums_beyond_float16_are_refused(tmp_path: Path) -> None:
    write_hf(tmp_path / "base", CONFIG, TENSORS, dtype="float16")
    adapter = write_peft(tmp_path / "adapter", CHANGES)
    with pytest.raises(InputError, match="too large for float16; merge with a smaller scale"):
        merged(tmp_path / "base", [(adapter, 1e6)])


def test_the_destination_may_not_hold_the_adapter(tmp_path: Path, base: Path) -> None:
    out = merged(base, [])
    adapter = write_peft(out / "adapter", CHANGES)
    with pytest.raises(InputError, match="holds the source; choose another destination"):
        merged(base, [(adapter, 1.0)], overwrite=True)


def test_memory_is_that_of_one_tensor(tmp_path: Path) -> None:
    config = small_config(hidden_size=512, intermediate_size=1024, num_hidden_layers=4, vocab_size=8192)
    tensors = random_tensors(config, np.random.default_rng(0))
    write_hf(tmp_path / "base", config, tensors)
    adapter = write_peft(tmp_path / "adapter", random_changes(config, linears(config), 4, np.random.default_rng(1)))
    largest = max(tensor.nbytes for tensor in tensors.values())
    assert sum(tensor.nbytes for tensor in tensors.values()) > 3 * largest
    del tensors
    merged(tmp_path / "base", [], "raw")  # what is imported once is not counted
    tracemalloc.start()
    merged(tmp_path / "base", [(adapter, 1.0)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * largest


def test_the_command(tmp_path: Path, base: Path) -> None:
    one, other = write_peft(tmp_path / "one", CHANGES), write_peft(tmp_path / "a=b", CHANGES)
    out = tmp_path / "out"
    result = invoke("convert", str(base), str(out), "--merge-adapter", f"{one}=0.5", "--merge-adapter", str(other))
    assert result.status == 0, result.err
    for name in linears(CONFIG):
        assert close(values(out)[name], TENSORS[name] + delta(CHANGES[name], 2.0 * 1.5))


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("ADAPTER=x", 2, "is not PATH or PATH=SCALE with a finite number"),
        ("ADAPTER=nan", 2, "is not PATH or PATH=SCALE"),
        ("ADAPTER=inf", 2, "is not PATH or PATH=SCALE"),
        ("=1", 2, "'--merge-adapter'"),
        ("none", 1, "none: no such file or folder"),
    ],
)
def test_errors_of_the_command_are_one_line(tmp_path: Path, base: Path, text: str, status: int, words: str) -> None:
    write_peft(tmp_path / "ADAPTER", CHANGES)
    result = invoke(
        "convert", str(base), str(tmp_path / "out"), "--merge-adapter", text.replace("A", f"{tmp_path}/A", 1)
    )
    assert (result.status, result.err.count("\n")) == (status, 1)
    assert words in result.err


def test_a_weight_that_the_model_lacks(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in TENSORS.items() if name != HEAD}
    write_hf(tmp_path / "base", CONFIG, tensors)
    with pytest.raises(CheckpointError, match=r"the model has no lm_head\.weight"):
        merged(tmp_path / "base", [(write_peft(tmp_path / "adapter", CHANGES), 1.0)])

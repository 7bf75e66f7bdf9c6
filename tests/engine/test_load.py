"""load(): every format gives the same model, and what does not fit is named."""

import shutil
import sys
import threading
import warnings
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from tokenizer.vocabularies import TINY, gguf_vocabulary
from weights.files import random_tensors, small_config, write_gguf, write_hf

import mistral_portable as mp
from mistral_portable.cache import Chunk
from mistral_portable.engine.block_maker import block_maker
from mistral_portable.errors import BackendError, CacheError, CheckpointError, InputError, TokenizerError
from mistral_portable.testing import nmse
from mistral_portable.weights import open_checkpoint
from mistral_portable.weights.quantize_on_read import QUANTIZABLE

IDS = [1, 5, 9, 17, 33, 65, 3, 8]


def small(folder: Path, format: str, quantization: str = "F32", seed: int = 0) -> Path:
    config = small_config()
    tensors = random_tensors(config, np.random.default_rng(seed))
    folder.mkdir(exist_ok=True)
    if format == "gguf":
        write_gguf(folder / "model.gguf", config, tensors, quantization)
        return folder / "model.gguf"
    write_hf(folder / "hf", config, tensors, shards=2, dtype=quantization)
    return folder / "hf"


@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0"])
def test_gguf_gives_the_logits_of_the_safetensors_folder(tmp_path: Path, quantization: str) -> None:
    expected = mp.load(small(tmp_path, "hf", "float32"), backend="reference").logits(IDS)
    logits = mp.load(small(tmp_path, "gguf", quantization), backend="reference").logits(IDS)
    # What the storage type itself costs, measured on the weights: 0 for F32, where the bits are the same.
    stored = {name: tensor.numpy() for name, tensor in open_checkpoint(tmp_path / "model.gguf").tensors.items()}
    exact = {name: tensor.numpy() for name, tensor in open_checkpoint(tmp_path / "hf").tensors.items()}
    cost = max(nmse(stored[name], exact[name]) for name in exact)
    if quantization == "F32":
        np.testing.assert_array_equal(logits, expected)
    assert nmse(logits, expected) <= 20 * cost  # 14 matrices of two layers, and the head, add their shares


def test_tiny_as_gguf_is_the_same_model_with_the_same_tokenizer(tmp_path: Path, tiny: mp.Model) -> None:
    checkpoint = open_checkpoint("tiny")
    tensors = {name: tensor.numpy() for name, tensor in checkpoint.tensors.items()}
    path = tmp_path / "tiny.gguf"
    write_gguf(path, checkpoint.config, tensors, "BF16", gguf_vocabulary(TINY, chat_template="mistral-v3"))
    with mp.load(path, backend="reference") as model:
        assert model.config.layer_windows == tiny.config.layer_windows
        run = model.generate("Once upon a time", max_tokens=100, temperature=0)
        assert run.text == tiny.generate("Once upon a time", max_tokens=100, temperature=0).text
        chat = [{"role": "user", "content": "Who has the ball?"}]
        assert model.tokenizer.chat(chat) == tiny.tokenizer.chat(chat)


def test_without_a_tokenizer_ids_work_and_text_says_what_is_missing(tmp_path: Path) -> None:
    with mp.load(small(tmp_path, "gguf"), backend="reference") as model:
        out = model.generate(IDS, max_tokens=3, temperature=0, ignore_eos=True)
        assert (len(out.tokens), out.text) == (3, "")
        for call in (
            lambda: model.generate("text"),
            lambda: model.chat([{"role": "user", "content": "x"}]),
            lambda: model.tokenizer,
        ):
            with pytest.raises(TokenizerError, match="has no tokenizer"):
                call()
        with pytest.raises(InputError, match="stop"):
            model.generate(IDS, stop="x")


def test_the_window_can_be_replaced(tiny: mp.Model) -> None:
    ids = list(range(20, 100))
    for window in (1, 8, 64, None):
        with mp.load("tiny", backend="reference", window=window) as model:
            assert set(model.config.layer_windows) == {window}
            same = np.array_equal(model.logits(ids), tiny.logits(ids))
            assert same == (window == 64)
            # Up to the window nothing differs.
            assert np.allclose(model.logits(ids[: window or 64]), tiny.logits(ids[: window or 64]), atol=1e-4)


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    config = small_config()
    tensors = random_tensors(config, np.random.default_rng(0))
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]
    write_hf(tmp_path, config, tensors)
    with pytest.raises(CheckpointError) as caught:
        mp.load(tmp_path, backend="reference")
    message = str(caught.value)
    for words in ("model.norm.weight is missing", "model.layers.1.mlp.up_proj.weight is missing", "(95, 64)"):
        assert words in message


def test_biases_are_refused_not_ignored(tmp_path: Path) -> None:
    config = small_config()
    tensors = random_tensors(config, np.random.default_rng(0))
    write_gguf(tmp_path / "m.gguf", config, tensors | {"blk.0.attn_q.bias": np.ones(64, np.float32)})
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.q_proj\.bias is a bias"):
        mp.load(tmp_path / "m.gguf", backend="reference")


def test_an_inferred_window_is_announced(tmp_path: Path) -> None:
    v01 = small_config(
        vocab_size=32000, intermediate_size=14336, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=8,
        head_dim=8, max_position_embeddings=32768,
    )  # fmt: skip
    other = small_config()
    for name, config in {"v01": v01, "other": other}.items():
        write_gguf(tmp_path / f"{name}.gguf", config, random_tensors(config, np.random.default_rng(0)), "Q4_0")
    with pytest.warns(UserWarning, match="4096"):
        assert mp.load(tmp_path / "v01.gguf", backend="reference").config.layer_windows == (4096,)
    with warnings.catch_warnings(record=True) as notices:
        assert mp.load(tmp_path / "other.gguf", backend="reference").config.layer_windows == (None, None)
    assert not any("window" in str(notice.message) for notice in notices)


def test_float64_gives_the_same_text_and_float32_logits(tiny: mp.Model) -> None:
    with mp.load("tiny", backend="reference", dtype="float64") as model:
        logits = model.logits(IDS)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, tiny.logits(IDS), rtol=0, atol=1e-4 * np.abs(logits).max())
        run = model.generate("Once upon a time", max_tokens=20, temperature=0)
        assert run.text == tiny.generate("Once upon a time", max_tokens=20, temperature=0).text


@pytest.mark.parametrize("type", QUANTIZABLE)
def test_quantize_makes_the_blocks_that_the_command_writes(tmp_path: Path, type: str) -> None:
    source = small(tmp_path, "hf", "float32")
    written = open_checkpoint(mp.quantize(source, tmp_path / "q.gguf", type)).tensors
    found = open_checkpoint(source, quantize=type, make=block_maker()).tensors
    alike = [name for name, tensor in written.items() if tensor.dtype == type]
    assert len(alike) >= 7
    for name in alike:  # GGUF's q and k rows are permuted back
        np.testing.assert_array_equal(found[name].numpy(), written[name].numpy(), err_msg=name)
    dense = {name: tensor.numpy() for name, tensor in found.items()}
    write_hf(tmp_path / "dense", small_config(), dense)
    with warnings.catch_warnings(action="ignore"):
        expected = mp.load(tmp_path / "dense", backend="reference").logits(IDS)
    np.testing.assert_array_equal(mp.load(source, backend="reference", quantize=type).logits(IDS), expected)


def test_what_is_quantized_is_not_quantized_again(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"quantized already \(q4_0\)"):
        mp.load(small(tmp_path, "gguf", "Q4_0"), backend="reference", quantize="q8_0")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_reference_caches_in_its_own_type_only(dtype: str) -> None:
    with mp.load("tiny", backend="reference", dtype=dtype, kv_cache=dtype) as model:
        assert model.logits(IDS).shape[0] == len(IDS)
    for kv_cache in ("float16", "q8_0", "int3", "float32" if dtype == "float64" else "float64"):
        with pytest.raises(BackendError, match=f"'reference', kv_cache='{kv_cache}': it keeps .* in {dtype} beside"):
            mp.load("tiny", backend="reference", dtype=dtype, kv_cache=kv_cache)


def test_the_reference_refuses_int8() -> None:
    with pytest.raises(BackendError, match="'reference', dtype='int8': it computes in float32, float64; choose"):
        mp.load("tiny", backend="reference", dtype="int8")


def test_a_damaged_tokenizer_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(Path(mp.__file__).parent / "assets" / "tiny", folder)
    damaged = next(path for path in folder.iterdir() if path.name.startswith(("tokenizer.model", "tekken")))
    damaged.write_bytes(b"no tokenizer")
    with pytest.raises(mp.MistralPortableError, match=r"tokenizer|tekken"):
        mp.load(folder, backend="reference")


def test_an_error_of_the_tokenizer_ends_the_reading_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read at the same time, and each report of the reading asks for the error."""
    failed, left, set_exception = threading.Event(), list[int](), Future.set_exception

    def fail(*arguments: object) -> None:
        raise TokenizerError("no tokenizer")

    def keep(future: Future[object], error: BaseException) -> None:
        set_exception(future, error)
        failed.set()

    def wait(what: str, done: int, total: int) -> None:
        assert failed.wait(60)
        left.append(total - done)

    monkeypatch.setattr(sys.modules["mistral_portable.engine.load"], "load_tokenizer", fail)
    monkeypatch.setattr(Future, "set_exception", keep)
    with pytest.raises(TokenizerError, match="no tokenizer"):
        mp.load("tiny", backend="reference", progress=wait)
    assert len(left) <= 1  # none where the error comes before the first report
    assert 0 not in left


def test_a_saved_lane_of_other_weights_is_refused(tmp_path: Path) -> None:
    """Though all its shapes are the same."""
    with mp.load(small(tmp_path / "a", "gguf", seed=0), backend="reference") as one, one.lane() as lane:
        one.step([Chunk(lane, IDS)])
        saved = one.core.save(lane)
        assert one.core.load(saved) != lane
    with (
        mp.load(small(tmp_path / "b", "gguf", seed=1), backend="reference") as other,
        pytest.raises(CacheError, match="other weights"),
    ):
        other.core.load(saved)

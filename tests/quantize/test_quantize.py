"""`quantize`: its files, its errors, and that an interrupted run leaves nothing that loads."""

import importlib.util
import shutil
import signal
import subprocess
import sys
import tracemalloc
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from weights.files import random_tensors, small_config, write_gguf, write_hf, write_raw

import mistral_portable as mp
from mistral_portable import transformers
from mistral_portable.boundary import ExecutorOptions
from mistral_portable.conversion.model import prepare
from mistral_portable.errors import CapacityError, CheckpointError, InputError, NumericsError, TokenizerError
from mistral_portable.quantization import MIXTURES
from mistral_portable.quantization.calibrate import calibrated
from mistral_portable.reference.backend import ReferenceBackend
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.weights import DenseTensor, open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TEXT = "Once upon a time, there was a kind girl named Jane. Jane loved a black ring. The ring was new. " * 20


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def exact() -> tuple[list[int], NDArray[np.float32]]:
    """A prompt, and its logits by the embedded model."""
    with mp.load("tiny", backend="reference") as model:
        prompt = model.tokenizer.encode(TEXT[:200])
        return prompt, model.logits(prompt)


def clear(logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where the likeliest token is at least e times as likely as any other: elsewhere any rounding may change it."""
    second, first = np.sort(logits, 1)[:, -2:].T
    margin: NDArray[np.float32] = first - second
    return margin >= 1


@pytest.mark.parametrize("type", MIXTURES)
def test_every_type_loads_and_runs(tmp_path: Path, type: str, exact: tuple[list[int], NDArray[np.float32]]) -> None:
    path = mp.quantize("tiny", tmp_path / "m.gguf", type)
    opened = open_checkpoint(path)
    usual = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}.get(type, MIXTURES[type].usual)
    assert opened.tensors["model.layers.1.mlp.up_proj.weight"].dtype == usual
    assert opened.tensors["model.norm.weight"].dtype == "float32"
    assert opened.config.sliding_window == 64
    prompt, expected = exact
    with mp.load(path, backend="reference") as model:
        agree = (model.logits(prompt).argmax(1) == expected.argmax(1))[clear(expected)].mean()
        assert agree >= {"q2": 0.6, "q3": 0.8}.get(type[:2], 0.9)


def test_smaller_types_are_smaller_files(tmp_path: Path) -> None:
    order = ["q2_k", "q3_k_s", "q4_k_s", "q5_k_s", "q6_k", "q8_0", "f16", "f32"]
    sizes = [mp.quantize("tiny", tmp_path / f"{type}.gguf", type).stat().st_size for type in order]
    assert sizes == sorted(set(sizes))


def test_every_source_gives_the_same_blocks(tmp_path: Path) -> None:
    config = small_config(hidden_size=256, intermediate_size=256)
    tensors = random_tensors(config, np.random.default_rng(1))
    sources = [tmp_path / "hf", tmp_path / "raw", tmp_path / "m.gguf"]
    write_hf(sources[0], config, tensors)
    write_raw(sources[1], config, tensors)
    write_gguf(sources[2], config, tensors)
    made = [mp.quantize(source, tmp_path / f"{source.name}.q.gguf", "q4_k_m") for source in sources]
    stored = [open_checkpoint(path).tensors for path in made]
    for name, tensor in stored[0].items():
        assert all(other[name].dtype == tensor.dtype for other in stored)
        assert all(np.array_equal(other[name].numpy(), tensor.numpy()) for other in stored), name


def test_what_is_quantized_is_refused_unless_allowed(tmp_path: Path) -> None:
    first = mp.quantize("tiny", tmp_path / "q8.gguf", "q8_0")
    with pytest.raises(InputError, match=r"matrices are quantized already \(q8_0\).*--allow-requantize"):
        mp.quantize(first, tmp_path / "q4.gguf", "q4_0")
    again = mp.quantize(first, tmp_path / "q4.gguf", "q4_0", allow_requantize=True)
    assert open_checkpoint(again).tensors["model.layers.0.mlp.up_proj.weight"].dtype == "q4_0"
    same = mp.quantize(first, tmp_path / "same.gguf", "q8_0")  # nothing changes, so nothing is lost
    old, new = (open_checkpoint(path).tensors for path in (first, same))
    assert all(np.array_equal(new[name].numpy(), tensor.numpy()) for name, tensor in old.items())


def test_rows_that_are_no_whole_blocks_are_said(tmp_path: Path) -> None:
    config = small_config(hidden_size=96, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    write_hf(tmp_path / "m", config, random_tensors(config, np.random.default_rng(1)))
    with pytest.warns(UserWarning, match="rows are not whole blocks of q4_k, become q5_0"):
        path = mp.quantize(tmp_path / "m", tmp_path / "q.gguf", "q4_k_s")
    assert open_checkpoint(path).tensors["model.layers.0.mlp.up_proj.weight"].dtype == "q5_0"


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_named(tmp_path: Path, wrong: float) -> None:
    config = small_config()
    tensors = random_tensors(config, np.random.default_rng(1))
    tensors["model.layers.1.mlp.up_proj.weight"][1, 2] = wrong
    write_hf(tmp_path / "m", config, tensors)
    with pytest.raises(
        CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds a number that is not finite"
    ):
        mp.quantize(tmp_path / "m", tmp_path / "out" / "q.gguf", "q8_0")
    assert list((tmp_path / "out").iterdir()) == []


KILLED = """
import os, signal, sys
import mistral_portable as mp
from mistral_portable import transformers

def kill(what, done, total):
    if what == "blk.2.ffn_up.weight":
        os.kill(os.getpid(), signal.SIGKILL)

mp.quantize("tiny", sys.argv[1], "q4_0", progress=kill)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_what_a_killed_process_leaves_does_not_load(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, tmp_path / "q.gguf"])
    assert run.returncode == -signal.SIGKILL
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left
    assert all(".partial" in str(path) for path in left)
    for path in left:
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_an_interrupted_run_leaves_what_was_there(tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("blk.1."):
            raise KeyboardInterrupt

    path = mp.quantize("tiny", tmp_path / "q.gguf", "q8_0")
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        mp.quantize("tiny", path, "q4_0")
    with pytest.raises(KeyboardInterrupt):
        mp.quantize("tiny", path, "q4_0", overwrite=True, progress=interrupt)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["q.gguf"]
    mp.quantize("tiny", path, "q4_0", overwrite=True)
    assert path.read_bytes() != before


def test_memory_is_that_of_a_tensor(tmp_path: Path) -> None:
    config = small_config(hidden_size=512, intermediate_size=1024, num_hidden_layers=12)
    write_gguf(tmp_path / "m.gguf", config, random_tensors(config, np.random.default_rng(1)))
    mp.quantize(tmp_path / "m.gguf", tmp_path / "warm.gguf", "q4_k_m")
    tracemalloc.start()
    try:
        mp.quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", "q4_k_m")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (tmp_path / "m.gguf").stat().st_size / 8


# --- calibration ----------------------------------------------------------------------------------------------------


def test_importance_is_the_mean_square_of_inputs(text: Path) -> None:
    checkpoint = open_checkpoint("tiny")
    found = calibrated(prepare(checkpoint, checkpoint.config, None), text, ExecutorOptions())
    linears = [name for name, tensor in checkpoint.tensors.items() if len(tensor.shape) == 2 and "embed" not in name]
    assert sorted(found) == sorted(linears)
    for name, importance in found.items():
        assert importance.shape == (checkpoint.tensors[name].shape[1],)
        assert importance.mean() == pytest.approx(1, rel=1e-3)
    # The input of the first layer's q, k and v is the normed embedding.
    tokens = mp.load("tiny", backend="reference").tokenizer.encode(TEXT)
    starts = range(0, len(tokens), 511)
    chunks = [[tokens[0], *tokens[max(start, 1) : start + 512]][:512] for start in starts]
    table = checkpoint.tensors["model.embed_tokens.weight"].numpy(np.float64)
    x = table[np.concatenate(chunks)]
    x /= np.sqrt((x**2).mean(1, keepdims=True) + 1e-5)
    x *= checkpoint.tensors["model.layers.0.input_layernorm.weight"].numpy(np.float64)
    squares = (x**2).mean(0)
    for module in ("q_proj", "k_proj", "v_proj"):
        importance = found[f"model.layers.0.self_attn.{module}.weight"]
        np.testing.assert_allclose(importance, squares / squares.mean(), rtol=1e-3)


def test_calibrating_lowers_the_errors_that_count(tmp_path: Path, text: Path) -> None:
    checkpoint = open_checkpoint("tiny")
    importance = calibrated(prepare(checkpoint, checkpoint.config, None), text, ExecutorOptions())
    errors: list[dict[str, float]] = []
    for calibrate in (None, text):
        made = open_checkpoint(mp.quantize("tiny", tmp_path / f"{len(errors)}.gguf", "q3_k_s", calibrate=calibrate))
        off = {name: made.tensors[name].numpy() - checkpoint.tensors[name].numpy() for name in importance}
        errors.append({name: float((importance[name] * off[name] ** 2).mean()) for name in importance})
    assert all(errors[1][name] < errors[0][name] for name in importance)


def test_calibrating_needs_text_and_a_tokenizer(tmp_path: Path, text: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name, words in (
        ("empty", "no text"),
        ("binary", "not a text file in UTF-8"),
        ("none", "not a text file in UTF-8"),
    ):
        with pytest.raises(InputError, match=words):
            mp.quantize("tiny", tmp_path / "q.gguf", "q4_0", calibrate=tmp_path / f"{name}.txt")
    config = small_config()
    write_hf(tmp_path / "m", config, random_tensors(config, np.random.default_rng(1)))
    with pytest.raises(TokenizerError, match="no tokenizer, which calibrating on text needs"):
        mp.quantize(tmp_path / "m", tmp_path / "q.gguf", "q4_0", calibrate=text)


class Unthreaded(ReferenceBackend):
    """The reference without the option `threads`; its programs fail after some steps, and it counts their closing."""

    capabilities = replace(ReferenceBackend.capabilities, options=frozenset())

    def __init__(self, steps: int = 10**9) -> None:
        self.steps, self.closed = steps, 0

    def prepare(self, *args: Any) -> ReferenceProgram:
        program = super().prepare(*args)
        step, close = program.step, program.close

        def failing(*args: Any) -> Any:
            self.steps -= 1
            if self.steps < 0:
                raise CapacityError("no memory")
            return step(*args)

        def counting() -> None:
            self.closed += 1
            close()

        vars(program).update(step=failing, close=counting)
        return program


def test_calibrating_closes_its_program_whatever_happens(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option `threads`, which the quantizer takes, is not passed to a backend without it."""
    checkpoint = open_checkpoint("tiny")
    source = prepare(checkpoint, checkpoint.config, None)
    for backend in (Unthreaded(), Unthreaded(steps=0)):
        monkeypatch.setattr("mistral_portable.quantization.calibrate.select", lambda backend=backend: backend)
        with nullcontext() if backend.steps else pytest.raises(CapacityError):
            calibrated(source, text, ExecutorOptions(threads=2))
        assert backend.closed == 1


def test_weights_that_are_not_finite_are_not_the_texts_fault(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint("tiny")
    norm = "model.layers.0.input_layernorm.weight"
    nan = DenseTensor(norm, "float32", np.full_like(checkpoint.tensors[norm].numpy(), np.nan))
    broken = replace(checkpoint, tensors={**checkpoint.tensors, norm: nan})
    monkeypatch.setattr("mistral_portable.quantization.calibrate.select", Unthreaded)
    with pytest.raises(NumericsError, match="NaN or infinite inputs"), np.errstate(all="ignore"):
        calibrated(prepare(broken, broken.config, None), text, ExecutorOptions())


# --- others -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python takes 12 minutes to build: pip install 'mistral-portable[bench]', then run this test",
)
@pytest.mark.parametrize("type", ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_xs", "q3_k_m", "q2_k"])
def test_llama_cpp_reads_the_same_weights(tmp_path: Path, type: str) -> None:
    """llama.cpp rounds the inputs of matrices to int8, so logits are close, and the argmax differs only near ties."""
    from llama_cpp import Llama

    path = mp.quantize("tiny", tmp_path / "m.gguf", type)
    with mp.load(path, backend="reference", window=None) as model:
        tokens = model.tokenizer.encode(TEXT)[:200]
        expected = model.logits(tokens)
    llama = Llama(str(path), n_ctx=256, verbose=False, n_gpu_layers=0, logits_all=True)
    llama.eval(tokens)
    found = np.array(llama.scores[: len(tokens)])
    assert np.square(found - expected).mean() < 0.01 * np.square(expected).mean()
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.95


@pytest.mark.parametrize("calibrated_on_text", [False, True])
def test_experts(tmp_path: Path, text: Path, calibrated_on_text: bool) -> None:
    """Experts are quantized in one tensor with three axes; the router stays in floats."""
    config = transformers.MistralConfig.from_pretrained(
        "tiny", num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2
    )
    transformers.MistralForCausalLM(config, backend="reference").save_pretrained(tmp_path / "hf")
    shutil.copy(open_checkpoint("tiny").path / "tokenizer.model.v3", tmp_path / "hf")
    calibrate = text if calibrated_on_text else None
    path = mp.quantize(tmp_path / "hf", tmp_path / "m.gguf", "q6_k", calibrate=calibrate)
    exact, opened = open_checkpoint(tmp_path / "hf").tensors, open_checkpoint(path).tensors
    for name, tensor in exact.items():
        found, expected = opened[name].numpy(), tensor.numpy()
        if ".gate." in name or expected.ndim == 1:
            np.testing.assert_array_equal(found, expected)
        else:
            assert opened[name].dtype in ("q6_k", "q8_0")
            assert 0 < np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 0.03
    with mp.load(path, backend="numba") as model:
        assert np.isfinite(model.logits([1, 5, 9])).all()

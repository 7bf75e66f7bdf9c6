"""Quantization of floats to ggml blocks: errors compared with other quantizers, and numbers that are refused."""

import ctypes
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_numba import BACKEND
from mistral_portable_numba.backend import NumbaBackend
from mistral_portable_numba.compiler.objects import default_folder
from mistral_portable_numba.layouts import BLOCKS
from numba_kernels import EVERY_ISA, compile_everywhere
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions, Quantizer
from mistral_portable.conversion.parts import float_part
from mistral_portable.errors import BackendError, CheckpointError
from mistral_portable.weights import DenseTensor

EVERY_TYPE = pytest.mark.parametrize("type", BLOCKS)
SIMPLE = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")  # those that gguf.quants makes
LLAMA = importlib.util.find_spec("llama_cpp")

# Relative root mean square errors of llama.cpp's quantizers (llama-cpp-python 0.3.36) on `gaussian()`.
THEIRS = {
    "q4_0": 0.0858,
    "q4_1": 0.07798,
    "q5_0": 0.04265,
    "q5_1": 0.03786,
    "q8_0": 0.00534,
    "iq4_nl": 0.07603,
    "q2_k": 0.296,
    "q3_k": 0.14983,
    "q4_k": 0.071,
    "q5_k": 0.03605,
    "q6_k": 0.01773,
    "iq4_xs": 0.07659,
}


@cache
def quantizer(threads: int = 2) -> Quantizer:
    """The quantizer of all types. A lock lets one of several processes compile the kernels."""
    default_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(default_folder() / "tests.lock"):
        return BACKEND.quantizer(list(BLOCKS), ExecutorOptions(threads=threads))


def tensor(values: NDArray[np.float32], dtype: str = "float32") -> DenseTensor:
    plain = DenseTensor("m.weight", "float32", values)
    return DenseTensor("m.weight", dtype, float_part("m.weight", plain, dtype).read())


def encoded(values: NDArray[np.float32], type: str, importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    weights = np.ones(values.shape[1], np.float32) if importance is None else importance
    return quantizer().blocks(tensor(values), type, weights)


def unpacked(blocks: NDArray[np.uint8], type: str) -> NDArray[np.float32]:
    return quants.dequantize(blocks, GGMLQuantizationType[type.upper()])


def gaussian(rows: int = 64, columns: int = 1024) -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(0, 0.02, (rows, columns)).astype(np.float32)


def relative(found: NDArray[np.float32], values: NDArray[np.float32], importance: Any = 1.0) -> float:
    """The root mean square error, weighted by importance, divided by that of the values."""
    wide = values.astype(np.float64)
    return float(np.sqrt((importance * (found - wide) ** 2).mean() / (importance * wide**2).mean()))


# Blocks of 32 numbers: some as in models, some that are extreme.
FLAVOURS: dict[str, Callable[[np.random.Generator], NDArray[Any]]] = {
    "normal": lambda rng: rng.normal(0, 1, 32),
    "zeros": lambda rng: np.zeros(32),
    "constant": lambda rng: np.full(32, rng.normal()),
    "positive": lambda rng: rng.uniform(1, 2, 32),
    "outlier": lambda rng: np.append(rng.normal(0, 1, 31), 1000 * rng.choice([-1, 1])),
    "two values": lambda rng: rng.choice([-1.0, 0.5], 32),
    "sparse": lambda rng: rng.normal(0, 1, 32) * (rng.random(32) < 0.1),
    "tiny": lambda rng: rng.normal(0, 1e-7, 32),
    "denormal": lambda rng: rng.normal(0, 1e-39, 32),
    "large": lambda rng: rng.normal(0, 1e4, 32),
}
MATRICES = st.builds(
    lambda flavours, rows, seed: _matrix(flavours, rows, np.random.default_rng(seed)),
    st.lists(st.sampled_from(sorted(FLAVOURS)), min_size=8, max_size=8),
    st.integers(1, 35),
    st.integers(0, 2**31),
)


def _matrix(flavours: list[str], rows: int, rng: np.random.Generator) -> NDArray[np.float32]:
    blocks = [[FLAVOURS[flavour](rng) for flavour in flavours] for _ in range(rows)]
    return np.array(blocks).reshape(rows, -1).astype(np.float32)


@pytest.mark.parametrize("type", SIMPLE)
@settings(max_examples=30)
@given(values=MATRICES)
def test_no_block_is_worse_than_gguf_makes_it(type: str, values: NDArray[np.float32]) -> None:
    """The search always tries the plain scale, rounded as it is stored."""
    kind = GGMLQuantizationType[type.upper()]
    with np.errstate(all="ignore"):
        theirs = quants.dequantize(quants.quantize(values, kind), kind)
    ours = unpacked(encoded(values, type), type)

    def errors(found: NDArray[np.float32]) -> NDArray[np.float64]:
        off: NDArray[np.float64] = found.astype(np.float64) - values
        squares: NDArray[np.float64] = np.square(off).reshape(-1, 32).sum(1)
        return squares

    # Squares of numbers below 1e-19 are 0 in float32, so all scales look equally good.
    assert (errors(ours) <= errors(theirs) * (1 + 1e-5) + 1e-35).all()


@EVERY_TYPE
@settings(max_examples=15)
@given(values=MATRICES)
def test_the_error_is_less_than_a_step(type: str, values: NDArray[np.float32]) -> None:
    """Any numbers: the error is less than the widest step that the block's largest number can cause, plus the rounding
    errors of float16 and of small integer scales."""
    found = unpacked(encoded(values, type), type)
    columns = BLOCKS[type].columns
    largest = abs(values.reshape(-1, columns)).max(1, keepdims=True)
    levels = {"q2_k": 3, "q3_k": 7, "iq4_nl": 9, "iq4_xs": 9}.get(type, 15)
    off = abs(found.reshape(-1, columns).astype(np.float64) - values.reshape(-1, columns))
    assert np.isfinite(found).all()
    assert (off <= 2.5 * largest / levels + 1e-5).all()
    empty = ~values.reshape(-1, columns).any(1)
    assert not found.reshape(-1, columns)[empty].any()


@EVERY_TYPE
def test_rows_do_not_depend_on_threads_nor_on_other_rows(type: str) -> None:
    values, ones = gaussian(53, 512), np.ones(512, np.float32)
    together = encoded(values, type)
    assert np.array_equal(quantizer(1).blocks(tensor(values), type, ones), together)
    assert np.array_equal(quantizer(3).blocks(tensor(values), type, ones), together)
    alone = [encoded(values[row : row + 1], type)[0] for row in (0, 15, 16, 52)]
    assert np.array_equal(alone, together[[0, 15, 16, 52]])


@EVERY_TYPE
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_floats_are_read_as_they_are_stored(type: str, dtype: str) -> None:
    stored = tensor(gaussian(20, 512), dtype)
    values, ones = stored.numpy(), np.ones(512, np.float32)
    assert np.array_equal(quantizer().blocks(stored, type, ones), encoded(values, type))


@EVERY_TYPE
def test_weights_with_strides_or_without_alignment(type: str) -> None:
    """Rows of a wider matrix, and weights at an odd address of a file."""
    values = gaussian(20, 512)
    wide = np.zeros((20, 600), np.float32)
    wide[:, 50:562] = values
    data = np.zeros(values.nbytes + 1, np.uint8)
    data[1:] = values.view(np.uint8).reshape(-1)
    for same in (wide[:, 50:562], data[1:].view(np.float32).reshape(20, 512)):
        assert np.array_equal(encoded(same, type), encoded(values, type))


@EVERY_TYPE
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 3e38, 1e12])
@pytest.mark.parametrize("place", [(0, 0), (16, 511), (7, 100)])
def test_numbers_that_no_block_can_hold_are_refused(type: str, wrong: float, place: tuple[int, int]) -> None:
    values = gaussian(17, 512)
    values[place] = wrong
    with pytest.raises(CheckpointError, match=f"m.weight holds a number that is not finite, or too large for {type}"):
        encoded(values, type)


@EVERY_TYPE
def test_important_columns_have_smaller_errors(type: str) -> None:
    values = gaussian()
    importance = np.random.default_rng(6).lognormal(0, 1.5, (1024,)).astype(np.float32)
    plain, weighted = (unpacked(encoded(values, type, some), type) for some in (None, importance))
    assert relative(weighted, values, importance) < 0.97 * relative(plain, values, importance)
    assert np.array_equal(encoded(values, type, np.full(1024, 8, np.float32)), encoded(values, type))


@EVERY_TYPE
def test_errors_are_smaller_than_those_of_llama_cpp(type: str) -> None:
    values = gaussian()
    assert relative(unpacked(encoded(values, type), type), values) < THEIRS[type]


@pytest.fixture(scope="module")
def ggml() -> Any:
    import llama_cpp

    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base*"))))
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    return library.ggml_quantize_chunk


@pytest.mark.skipif(LLAMA is None, reason="llama-cpp-python takes 12 minutes to build: 'mistral-portable[bench]'")
@EVERY_TYPE
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("tails", ["gaussian", "laplace", "student"])
def test_errors_are_no_larger_than_those_of_ggml(ggml: Any, type: str, calibrated: bool, tails: str) -> None:
    """Errors without importance, and weighted errors if both quantizers know the importance."""
    rng = np.random.default_rng(7)
    draws: dict[str, Callable[[], NDArray[np.float64]]] = {
        "gaussian": lambda: rng.normal(size=(64, 1024)),
        "laplace": lambda: rng.laplace(size=(64, 1024)),
        "student": lambda: rng.standard_t(4, (64, 1024)),
    }
    values = draws[tails]().astype(np.float32)
    importance = rng.lognormal(0, 1.5, 1024).astype(np.float32) if calibrated else None
    kind = GGMLQuantizationType[type.upper()]
    block, size = GGML_QUANT_SIZES[kind]
    out = np.empty((64, 1024 // block * size), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    ggml(int(kind), values.ctypes.data, out.ctypes.data, 0, 64, 1024, weights)
    counted = 1.0 if importance is None else importance
    ours, theirs = unpacked(encoded(values, type, importance), type), unpacked(out, type)
    assert relative(ours, values, counted) <= relative(theirs, values, counted)


@EVERY_ISA
@pytest.mark.parametrize("type", ["q4_0", "q5_1", "q4_k", "iq4_xs"])
def test_all_instruction_sets_have_nearly_equal_errors(isa: str, type: str, tmp_path: Path) -> None:
    """Sums are rounded differently where multiply-add is not fused, so sometimes another scale wins."""
    values = gaussian()
    with FileLock(default_folder() / "tests.lock"):
        compile_everywhere([f"encode_{type}"], default_folder())
    other = NumbaBackend(isa).quantizer([type], ExecutorOptions(threads=1))
    found = unpacked(other.blocks(tensor(values), type, np.ones(1024, np.float32)), type)
    assert relative(found, values) == pytest.approx(relative(unpacked(encoded(values, type), type), values), rel=1e-3)


def test_unknown_types_are_refused() -> None:
    with pytest.raises(BackendError, match="makes no blocks of q1_0, tq2_0: it makes q4_0"):
        BACKEND.quantizer(["tq2_0", "q4_0", "q1_0"], ExecutorOptions())

"""The ARM kernels compute what NumPy does; run under qemu on two threads, by a tape, as in a program."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from mistral_portable_numba.compiler.isa import ISAS, Isa
from mistral_portable_numba.compiler.simd.byte_dots import as_signed, dot4, dot4_signed, signed_zero, table_of
from mistral_portable_numba.compiler.simd.get_put import get_i64
from mistral_portable_numba.compiler.simd.lanes import all_i32
from mistral_portable_numba.compiler.simd.load_store import (
    load_bytes,
    load_f16,
    load_f32,
    load_i32,
    store_bytes,
    store_f16,
    store_f32,
    store_i32,
)
from mistral_portable_numba.compiler.toolchain import lower, object_file
from mistral_portable_numba.layouts import (
    BLOCKS,
    DENSE_SCRATCH,
    KV_BESIDE,
    KV_DTYPES,
    TOKEN_GROUP,
    head_width,
    linear_scratch,
    round_up,
)
from mistral_portable_numba.segments import attention_scratch, part_bytes
from mistral_portable_numba.tape import bits
from numba_activations import Codes, blank_codes
from numba_ir import arm_object
from numpy.typing import NDArray
from weights.files import bfloat16, random_blocks

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
MISSING = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

NEON, I8MM = ISAS["neon_dotprod"], ISAS["neon_i8mm"]
# Neoverse N1 is ARMv8.2, the oldest with dotprod: kernels that need more fail.
CPUS = {NEON: "neoverse-n1", I8MM: "max"}
BASE, THREADS, LINE = 1 << 36, 2, 64
NUMBERS: dict[str, Any] = dict(KV_DTYPES)
Array = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """An array in an image, whose rows lie `stride` bytes apart."""

    address: int
    stride: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


Argument = int | Rows
"""An argument of a kernel; Rows are passed as address and stride."""


class Image:
    """The memory of an emulated process from BASE on. It begins with the tape's arguments (`run_tape.c`)."""

    def __init__(self) -> None:
        self.memory = bytearray(LINE)

    def put(self, array: Array) -> int:
        """Copy an array; the address of the copy."""
        self.memory += bytes(-len(self.memory) % LINE)
        address = BASE + len(self.memory)
        self.memory += array.tobytes()
        return address

    def cell(self, value: int) -> int:
        """Store an integer; its address."""
        return self.put(np.array(value, np.int64))

    def space(self, size: int) -> int:
        """Reserve `size` bytes; their address."""
        return self.put(np.zeros(size, np.uint8))

    def rows(self, array: Array) -> Rows:
        """Copy rows with padding to whole vectors and whole groups of tokens; the padding is NaN in floats."""
        size = array[0].nbytes
        stride = round_up(size, 128) + LINE
        memory = np.full((round_up(len(array), TOKEN_GROUP), stride), 0xFF, np.uint8)
        memory[: len(array), :size] = np.ascontiguousarray(array).view(np.uint8).reshape(len(array), size)
        return Rows(self.put(memory), stride, array.shape, array.dtype)

    def results(self, *shape: int, dtype: Any = np.float32) -> Rows:
        """Reserve rows for results."""
        return self.rows(np.full(shape, 85, dtype))

    def array(self, address: int, count: int, dtype: Any) -> Array:
        """The memory at an address after the run."""
        return np.frombuffer(self.memory, dtype, count, address - BASE)

    def __getitem__(self, rows: Rows) -> Array:
        """The contents of rows after the run."""
        size = int(np.prod(rows.shape[1:])) * rows.dtype.itemsize
        memory = self.array(rows.address, rows.shape[0] * rows.stride, np.uint8).reshape(-1, rows.stride)
        return np.ascontiguousarray(memory[:, :size]).view(rows.dtype).reshape(rows.shape)

    def write_tape(self, instructions: Sequence[tuple[int, Sequence[Argument]]]) -> None:
        """Write a tape of (address of a kernel, its arguments without the counter)."""
        tape = []
        for kernel, arguments in instructions:
            values = [self.space(LINE)]
            for argument in arguments:
                values += [argument.address, argument.stride] if isinstance(argument, Rows) else [argument]
            tape.append((kernel, self.put(np.array(values, np.int64)), 1))
        job = np.array([len(tape), self.put(np.array(tape, np.int64)), self.space(LINE), 0], np.int64)
        self.memory[: job.nbytes] = job.tobytes()


Run = Callable[..., None]
"""(image, (kernel, arguments), .., linears=): run the kernels on the image, linears of this instruction set."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(
        image: Image, *instructions: tuple[str, Sequence[Argument]], own: Sequence[Path] = (), linears: Isa = NEON
    ) -> None:
        names = {"tape", *(name for name, _ in instructions)} - {path.stem for path in own}
        isas = {name: linears if name.startswith("linear_") else NEON for name in sorted(names)}
        objects = [*own, *(arm_object(name, isa) for name, isa in isas.items())]
        program, file = tmp_path / "program", tmp_path / "image"
        sources = [str(path) for path in (Path(__file__).with_name("run_tape.c"), *objects)]
        subprocess.run([COMPILER, "-O1", "-static", "-pthread", *sources, "-o", str(program)], check=True)
        listing = subprocess.check_output(["aarch64-linux-gnu-nm", "--defined-only", program], text=True)
        addresses = {name: int(address, 16) for address, _, name in map(str.split, listing.splitlines())}
        image.write_tape([(addresses[name], arguments) for name, arguments in instructions])
        file.write_bytes(image.memory)
        command = [EMULATOR, "-cpu", CPUS[linears], str(program), str(file), str(BASE), str(THREADS)]
        subprocess.run(command, check=True, timeout=120)
        image.memory[:] = file.read_bytes()

    return run


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_sums(found: Array, x: Array, weight: Array) -> None:
    """Check found = x @ weight.T within float32 rounding errors, relative to the sums of magnitudes."""
    exact, magnitude = x.astype(np.float64) @ weight.T.astype(np.float64), np.abs(x) @ np.abs(weight.T)
    assert np.max(np.abs(found - exact) / magnitude) < 1e-6


# --- linear layers -------------------------------------------------------------------------------------------------


def int8(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize x: int8 codes, and a scale per 128 columns."""
    filled = np.pad(x, ((0, 0), (0, -x.shape[1] % 128))).reshape(len(x), -1, 128)
    largest = np.abs(filled).max(axis=2).astype(np.float64)
    codes = np.rint(filled * (127.0 / largest).astype(np.float32)[..., None])
    return codes.reshape(len(x), -1)[:, : x.shape[1]].astype(np.int8), (largest / 127.0).astype(np.float32)


def multiplied(run: Run, kind: str, tokens: int, isa: Isa) -> tuple[Array, Array, Array]:
    """The result of a linear over random blocks, its inputs as they are rounded, and its weights.

    Rows that do not fill a tile; more columns than a chunk, and no multiple of 128 where blocks allow it.
    """
    layout, rows = BLOCKS[kind], 40
    columns = 2304 if layout.columns == 256 else 2208
    packed = random_blocks(kind.upper(), (rows, columns), np.random.default_rng(1))
    x = normal(tokens, columns)
    image = Image()
    count, blocks, pairs = image.cell(tokens), columns // layout.columns, 2
    source, tiles = image.put(packed), image.space(32 * pairs * blocks * layout.bytes)
    blank = blank_codes(tokens, columns)
    made = [Rows(image.put(memory), memory.shape[1], memory.shape, memory.dtype) for memory in blank]
    out, scratch = image.results(tokens, rows), linear_scratch(layout, False)
    block = [layout.bytes, layout.half, layout.payload, layout.dwords]
    sums = made[2] if layout.step == 16 else made[1]
    run(
        image,
        ("pack", [pairs, rows, blocks, source, image.put(np.arange(rows, dtype=np.int64)), *block, tiles]),
        ("quantize", [count, columns, image.rows(x), *made]),
        (
            f"linear_{kind}",
            [count, pairs, blocks, tiles, out, made[0], sums, image.space(THREADS * scratch), scratch],
        ),
        linears=isa,
    )
    expected_codes, expected_scales = int8(x)
    for memory, expected in zip(made, Codes(expected_codes, expected_scales).laid_out(isa), strict=True):
        np.testing.assert_array_equal(image[memory], expected)
    weight = quants.dequantize(packed, GGMLQuantizationType[kind.upper()])
    return image[out], expected_codes * np.repeat(expected_scales, 128, axis=1)[:, :columns], weight


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("kind", BLOCKS)
def test_linear_over_blocks(run: Run, kind: str, tokens: int) -> None:
    assert_sums(*multiplied(run, kind, tokens, NEON))


# With and without zero points, offsets, two steps; q2_k: offsets of two steps; q3_k: another zero than START_ZEROS.
@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "q4_k", "q6_k", "q2_k", "q3_k"])
def test_squares_have_the_bits_of_single_products(run: Run, kind: str) -> None:
    np.testing.assert_array_equal(multiplied(run, kind, 9, I8MM)[0], multiplied(run, kind, 9, NEON)[0])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_linear_over_floats(run: Run, dtype: str) -> None:
    weight, x = normal(18, 100, seed=1), normal(9, 100)
    stored: Array = bfloat16(weight) if dtype == "bfloat16" else weight.astype(dtype)
    rounded = (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else stored.astype(np.float32)
    image = Image()
    out = image.results(9, 18)
    scratch = [image.space(THREADS * DENSE_SCRATCH), DENSE_SCRATCH]
    run(image, (f"linear_{dtype}", [image.cell(9), 18, 100, image.put(stored), image.rows(x), out, *scratch]))
    assert_sums(image[out], x, rounded)


# --- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_embedding(run: Run, dtype: str) -> None:
    table, ids = normal(18, 100, seed=1), np.array([17, 0, 0, 9], np.int32)
    stored: Array = bfloat16(table) if dtype == "bfloat16" else table.astype(dtype)
    wide = (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else stored.astype(np.float32)
    image = Image()
    out = image.results(4, 100)
    run(image, (f"embedding_{dtype}", [image.cell(4), 18, 100, image.put(stored), image.cell(image.put(ids)), out]))
    np.testing.assert_array_equal(image[out], wide[ids])


def test_rms_norm(run: Run) -> None:
    x, weight, eps = normal(9, 100), normal(112, seed=1), 1e-5
    image = Image()
    out = image.results(9, 100)
    run(image, ("rms_norm", [image.cell(9), 100, image.rows(x), out, image.put(weight), bits(eps)]))
    expected = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + eps) * weight[:100]
    np.testing.assert_allclose(image[out], expected, rtol=1e-6)


def test_rope(run: Run) -> None:
    x, turn = normal(9, 3, 2, 20), np.random.default_rng(1).uniform(0, 6, (9, 20))
    angles = np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32)
    image = Image()
    out = image.results(9, 3, 2, 20)
    run(image, ("rope", [image.cell(9), 3, 40, image.rows(x), out, image.cell(image.put(angles))]))
    (a, b), (cos, sin) = x.transpose(2, 0, 1, 3), angles[:, :, None].transpose(1, 0, 2, 3)
    expected = np.stack([a * cos - b * sin, b * cos + a * sin], axis=2)
    np.testing.assert_allclose(image[out], expected, atol=1e-6)


def test_silu_mul(run: Run) -> None:
    gate, up = np.linspace(-100, 100, 900, dtype=np.float32).reshape(9, 100), normal(9, 100)
    image = Image()
    out = image.results(9, 100)
    run(image, ("silu_mul", [image.cell(9), 100, image.rows(gate), image.rows(up), out]))
    with np.errstate(over="ignore"):
        expected = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    np.testing.assert_allclose(image[out], expected, rtol=1e-6, atol=1e-35)


def test_add_and_take(run: Run) -> None:
    a, b = normal(9, 100), normal(9, 100, seed=1)
    rows = np.array([8, 0, 3], np.int32)
    image = Image()
    total, some = image.results(9, 100), image.results(3, 100)
    run(
        image,
        ("add", [image.cell(9), 100, image.rows(a), image.rows(b), total]),
        ("take", [image.cell(3), 100, total, some, image.cell(image.put(rows))]),
    )
    np.testing.assert_array_equal(image[total], a + b)
    np.testing.assert_array_equal(image[some], (a + b)[rows])


# --- attention -----------------------------------------------------------------------------------------------------

HEADS, KV_HEADS, HEAD_DIM, WINDOW, PAGES = 4, 2, 40, 80, 5
GROUPS = head_width(HEAD_DIM) // 32


def cached(memory: Array, kv: str, keys: bool) -> NDArray[np.float32]:
    """[slots, heads, head_dim] from the bytes of a pool of keys or values (`layouts.py`)."""
    dtype, width, n = NUMBERS[kv], HEAD_DIM if keys else head_width(HEAD_DIM), KV_BESIDE[kv]
    pages = memory.reshape(PAGES, KV_HEADS, -1)
    numbers = pages[..., : 64 * width * dtype.itemsize].view(dtype)
    scales = pages[..., 64 * width * dtype.itemsize :].view(np.float16) if kv == "q8_0" else None
    # slots [.., 64] stand before the columns that lie side by side: n of a key, 32 of a value, with those of n values
    shape = (-1, 64, n) if keys else (-1, 64 // n, 32, n)
    columns = numbers.reshape(PAGES, KV_HEADS, *shape)
    columns = columns.swapaxes(2, 3) if keys else columns.transpose(0, 1, 3, 5, 2, 4)
    values: NDArray[np.float32] = columns.reshape(PAGES, KV_HEADS, 64, -1)[..., :HEAD_DIM].astype(np.float32)
    if scales is not None:
        factors = scales.reshape(PAGES, KV_HEADS, GROUPS, 64).swapaxes(2, 3).astype(np.float32)
        values *= np.repeat(factors, 32, axis=3)[..., :HEAD_DIM]
    return values.swapaxes(1, 2).reshape(PAGES * 64, KV_HEADS, HEAD_DIM)


@pytest.mark.parametrize("kv", NUMBERS)
def test_attention(run: Run, kv: str) -> None:
    """Two sequences: positions 0..129 with 9 queries at the end, and positions 0..4 with 5 queries.

    The first one reads positions from 42 on; its pages are 3, 0, 2. The second one has page 1 and padding.
    """
    sizes_of = {True: HEAD_DIM, False: head_width(HEAD_DIM)}
    scales = 2 * GROUPS if kv == "q8_0" else 0
    bytes_of = {keys: PAGES * KV_HEADS * 64 * (n * NUMBERS[kv].itemsize + scales) for keys, n in sizes_of.items()}
    pages = np.array([[3, 0, 2], [1, 0, 0]], np.int32)
    positions, sequence = np.r_[0:130, 0:5], np.repeat([0, 1], [130, 5])
    slots = (pages[sequence, positions // 64] * 64 + positions % 64).astype(np.int32)
    k, v, q = (
        normal(135, KV_HEADS, HEAD_DIM),
        normal(135, KV_HEADS, HEAD_DIM, seed=1),
        normal(14, HEADS, HEAD_DIM, seed=2),
    )
    scale = HEAD_DIM**-0.5
    image = Image()
    pools = [image.space(bytes_of[keys]) for keys in (True, False)]
    table = image.put(np.array(pools, np.int64))
    items = np.array([[0, 9, 121, 0], [9, 5, 0, 3]], np.int64)
    out, scratch = image.results(14, HEADS, HEAD_DIM), attention_scratch(HEADS, KV_HEADS, HEAD_DIM)
    parts = sum(part_bytes(tokens, HEADS, KV_HEADS, HEAD_DIM) for tokens in (9, 5))  # one segment each
    to = image.cell(image.put(slots))
    places = [image.cell(image.put(pages)), image.cell(image.space(parts))]
    read = [table, *places, image.space(THREADS * scratch), scratch]
    sizes, attributes = [KV_HEADS, HEAD_DIM], [HEADS, KV_HEADS, HEAD_DIM, WINDOW, bits(scale)]
    attend = [image.cell(2), image.cell(image.put(items)), *attributes, image.rows(q), out, *read]
    run(
        image,
        (f"store_keys_{kv}", [image.cell(135), *sizes, image.rows(k), to, table]),
        (f"store_values_{kv}", [image.cell(135), *sizes, image.rows(v), to, table + 8]),
        *((f"attention_{kv}", [*attend, merges]) for merges in (0, 1)),
    )
    stored = []
    for address, original, keys in zip(pools, (k, v), (True, False), strict=True):
        content = cached(image.array(address, bytes_of[keys], np.uint8), kv, keys)[slots]
        stored.append(np.repeat(content, HEADS // KV_HEADS, axis=1).astype(np.float64))
        if kv == "q8_0":
            np.testing.assert_allclose(content, original, atol=np.abs(original).max() / 250)
        else:
            np.testing.assert_array_equal(content, original.astype(kv))
    for own, rows, asking in ((sequence == 0, slice(0, 9), np.r_[121:130]), (sequence == 1, slice(9, 14), np.r_[0:5])):
        scores = np.einsum("thd,nhd->htn", q[rows], stored[0][own]) * scale
        behind = asking[:, None] - positions[own]
        weights = np.exp(np.where((behind >= 0) & (behind < WINDOW), scores, -np.inf))
        weights /= weights.sum(axis=2, keepdims=True)
        # With q8_0, queries (up to 0.6) and weights are rounded to 16 bits, by up to half a 32512th of the largest:
        # scores of 40 columns are some 1e-5 * sqrt(40) off, values (up to 4) as much times their own size.
        limit = 1e-4 if kv == "q8_0" else 1e-6
        np.testing.assert_allclose(image[out][rows], np.einsum("htn,nhd->thd", weights, stored[1][own]), atol=limit)


# --- the functions of the instruction set --------------------------------------------------------------------------


@pytest.fixture
def run_own(run: Run, tmp_path: Path) -> Callable[..., None]:
    """Run a kernel that a test defines: (image, kernel, arguments)."""

    def run_own(image: Image, kernel: Any, *arguments: Argument) -> None:
        path = tmp_path / "own.o"
        path.write_bytes(object_file("own", lower("own", kernel), ISAS["neon_dotprod"], "aarch64-unknown-linux-gnu"))
        run(image, ("own", arguments), own=[path])

    return run_own


def test_float16(run_own: Callable[..., None]) -> None:
    """Convert all float16 to float32, and float32 of many kinds to float16."""

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        halves, widened, floats, narrowed = (
            get_i64(args + 8),
            get_i64(args + 16),
            get_i64(args + 24),
            get_i64(args + 32),
        )
        for i in range(0, 65536, 16):
            store_f32(widened + 4 * i, load_f16(halves + 2 * i))
            store_f16(narrowed + 2 * i, load_f32(floats + 4 * i))

    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    some = np.random.default_rng(0).integers(0, 2**16, 32768, np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        floats = np.concatenate([np.nextafter(some, np.float32(np.inf)), (some + np.roll(some, 1)) / 2])
    image = Image()
    widened, narrowed = image.space(4 * 65536), image.space(2 * 65536)
    run_own(image, kernel, image.put(halves), widened, image.put(floats), narrowed)
    np.testing.assert_array_equal(image.array(widened, 65536, np.float32), halves.astype(np.float32))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(image.array(narrowed, 65536, np.float16), floats.astype(np.float16))


def test_bytes_times_bytes(run_own: Callable[..., None]) -> None:
    """Dot products of random and of extreme bytes."""

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        weights, x, start, out = get_i64(args + 8), get_i64(args + 16), get_i64(args + 24), get_i64(args + 32)
        for i in range(0, 6400, 64):
            unsigned = load_bytes(weights + i) & 127
            store_i32(out + i, dot4(load_i32(start + i), unsigned, load_bytes(x + i)))
            zero = all_i32(signed_zero())
            store_i32(out + 6400 + i, dot4_signed(zero, as_signed(load_bytes(weights + i)), load_bytes(x + i)))

    rng = np.random.default_rng(0)
    weights, x, start = rng.integers(-128, 128, 6400), rng.integers(-127, 128, 6400), rng.integers(-99, 99, 1600)
    weights[:128], x[:64], x[64:128] = -128, 127, -127
    image = Image()
    out = image.space(2 * 6400)
    inputs = [image.put(weights.astype(np.int8)), image.put(x.astype(np.int8)), image.put(start.astype(np.int32))]
    run_own(image, kernel, *inputs, out)
    unsigned, signed = image.array(out, 3200, np.int32).reshape(2, 1600)
    np.testing.assert_array_equal(unsigned, start + ((weights & 127) * x).reshape(-1, 4).sum(axis=1))
    np.testing.assert_array_equal(signed, (weights * x).reshape(-1, 4).sum(axis=1))  # NEON's signed_zero() is 0


def test_lookup(run_own: Callable[..., None]) -> None:
    table = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
    lookup = table_of(*table)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        store_bytes(get_i64(args + 16), lookup(load_bytes(get_i64(args + 8))))

    index = np.random.default_rng(0).integers(0, 16, 64).astype(np.int8)
    image = Image()
    out = image.space(64)
    run_own(image, kernel, image.put(index), out)
    np.testing.assert_array_equal(image.array(out, 64, np.int8), np.array(table, np.int8)[index])

"""Measures the machine's peak speeds, and the share of them that each kernel reaches.

Speeds of a shared machine vary, so a kernel and its limits are measured in turn, and results are medians.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from statistics import median

import numpy as np

from mistral_portable.boundary import Precision
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.graph import build
from mistral_portable.weights import DenseTensor, QuantTensor, Tensor
from mistral_portable_numba.cache import KVCache
from mistral_portable_numba.compiler.chosen import chosen_isa
from mistral_portable_numba.compiler.objects import LoadedKernels, default_folder
from mistral_portable_numba.layouts import BLOCKS, PAGE_SIZE
from mistral_portable_numba.lowering import lower_graph
from mistral_portable_numba.step import StepValues
from mistral_portable_numba.tape import Instruction, Layout, lay_out
from mistral_portable_numba.team import Team, yield_address

__all__ = ["float32_peak", "int8_peak", "kernels", "read_bandwidth"]

Row = tuple[str, float, str, float]

_BUFFER = 2**29  # bytes to read: far more than caches hold
_DISTINCT = 2**28  # bytes that a run of a kernel reads, at least, where it reads weights or keys
_PIECES = 64  # of arithmetic for each thread: some 5 ms
_FILL = 0x3F  # in every byte: 0.75 as float32 and bfloat16, 1.8 as float16
_TURNS = 3
_MISTRAL_7B = MistralConfig(sliding_window=None)
_DEPTH, _CHUNK = 4096, 512
_FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def read_bandwidth(threads: int) -> float:
    """GB/s that this many threads together read from memory."""
    return _probes(threads).read_bandwidth()


def int8_peak(threads: int) -> float:
    """GOP/s of this many threads together, counting multiplications and additions of 8-bit numbers."""
    return _probes(threads).peak("probe_dot4")


def float32_peak(threads: int) -> float:
    """GFLOP/s of this many threads together, counting multiplications and additions of float32."""
    return _probes(threads).peak("probe_fma")


def kernels(threads: int) -> list[Row]:
    """A row per kernel at the sizes of Mistral 7B: name, speed, unit, and percent of the limit by memory or arithmetic.

    Weights, keys and values are read from memory; activations may come from the CPU's cache, faster than memory.
    """
    names = [f"linear_{kind}" for kind in (*BLOCKS, *_FLOATS)]
    machine = _Machine(threads, [*names, "attention_float16", "quantize", "rms_norm"])
    return list(_rows(machine))


class _Machine:
    """Loaded kernels and a team of threads that runs them."""

    def __init__(self, threads: int, names: Sequence[str]) -> None:
        self.threads, self.isa = threads, chosen_isa()
        self._loaded = LoadedKernels({"tape", *names}, self.isa, default_folder())
        self._addresses = {name: self._loaded[name] for name in names}
        self._team = Team(threads, self._loaded["tape"])
        self._barrier = np.zeros(64, np.int64)

    def layout(self, instructions: Iterable[Instruction], tokens: int = 1) -> Layout:
        """A tape of the instructions, with memory filled by _FILL."""
        layout = lay_out(list(instructions), (), self._addresses, tokens, tokens)
        layout.memory.fill(_FILL)
        return layout

    def seconds(self, layout: Layout) -> float:
        """Run the tape; returns the seconds that it took."""
        layout.counters[:] = self._barrier[:] = 0
        job = np.array([len(layout.tape), layout.address, self._barrier.ctypes.data, yield_address()], np.int64)
        begin = time.perf_counter()
        self._team.run(job.ctypes.data)
        return time.perf_counter() - begin


class _Probes:
    """Measures the limits; its buffers are kept between measurements."""

    def __init__(self, threads: int) -> None:
        self._machine = _Machine(threads, ["probe_read", "probe_dot4", "probe_fma"])
        self._data, self._sink = np.ones(_BUFFER, np.uint8), np.zeros((threads, 64), np.uint8)
        self._done = np.zeros(1, np.int64)

    def read_bandwidth(self) -> float:
        layout = self._machine.layout([self._instruction("probe_read", self._data.ctypes.data, _BUFFER)])
        return _median(lambda: _BUFFER / self._machine.seconds(layout) / 1e9, 0.1)

    def peak(self, name: str) -> float:
        pieces = _PIECES * self._machine.threads
        layout = self._machine.layout([self._instruction(name, pieces, self._data.ctypes.data)])

        def once() -> float:
            self._done[0] = 0
            seconds = self._machine.seconds(layout)
            return float(self._done[0]) / seconds / 1e9

        return _median(once, 0.03)

    def _instruction(self, name: str, first: int, second: int) -> Instruction:
        return Instruction(name, [first, second, self._sink.ctypes.data, self._done.ctypes.data], [], [])


@cache
def _probes(threads: int) -> _Probes:
    return _Probes(threads)


def _median(measure: Callable[[], float], least: float) -> float:
    """The median of repeated measurements that together take at least `least` seconds."""
    found, begin = [measure()], time.perf_counter()
    while time.perf_counter() - begin < least:
        found.append(measure())
    return median(found)


class _Model:
    """Some lowered layers of Mistral 7B, with the bytes and the operations of one run of their kernels."""

    def __init__(self, machine: _Machine, kind: str, layers: int, depth: int = 0) -> None:
        """kind: the type of the matrices. depth: tokens in the cache."""
        self._machine, self._kind, self._layers, self._depth = machine, kind, layers, depth
        config = self._config = replace(_MISTRAL_7B, num_hidden_layers=layers)
        self._spec = CacheSpec.from_config(
            config, max_context=depth + _CHUNK, page_size=PAGE_SIZE, max_chunk=max(depth, _CHUNK)
        )
        graph = build(config, head="none")
        weights = {name: _tensor(name, parameter.shape, kind) for name, parameter in graph.parameters.items()}
        precision = Precision("float32", "int8", "float16")
        self._values, self._cache = StepValues(self._spec), KVCache(self._spec, "float16")
        self._lowered = lower_graph(
            graph, weights, self._spec, precision, self._values, self._cache, machine.threads, tiles=machine.isa.tiles
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices."""
        return sum(matrix.data.nbytes for matrix in self._lowered.matrices.values())

    def linears(self, tokens: int, layers: int) -> Row:
        """The row of the linears in the first layers."""
        matrices = list(self._lowered.matrices.values())[: 7 * layers]
        for matrix in matrices:
            matrix.data.view(np.uint8).fill(_FILL)
        size = sum(matrix.data.nbytes for matrix in matrices)
        operations = 2 * tokens * sum(matrix.rows * matrix.columns for matrix in matrices)
        peak = float32_peak if self._kind in _FLOATS else int8_peak
        return self._row(f"linear_{self._kind}", tokens, size, operations, peak, 7 * layers)

    def attention(self, tokens: int) -> Row:
        config, end = self._config, self._depth + tokens
        seen = sum(range(self._depth + 1, end + 1))
        size = 4 * self._layers * end * config.num_key_value_heads * config.head_dim
        operations = 4 * self._layers * seen * config.num_attention_heads * config.head_dim
        return self._row("attention_float16", tokens, size, operations, float32_peak)

    def rows(self, kernel: str, tokens: int) -> Row:
        """The row of a kernel that reads activations, 4096 columns wide; one in four of `quantize` has 14336."""
        config = self._config
        widths = {"rms_norm": 2 * config.hidden_size, "quantize": 3 * config.hidden_size + config.intermediate_size}
        return self._row(kernel, tokens, 4 * tokens * self._layers * widths[kernel], 0, float32_peak)

    def _row(
        self,
        kernel: str,
        tokens: int,
        size: int,
        operations: int,
        peak: Callable[[int], float],
        most: int | None = None,
    ) -> Row:
        some = [instruction for instruction in self._lowered.instructions if instruction.kernel == kernel][:most]
        self._step(tokens)
        layout = self._machine.layout(some, tokens)
        threads = self._machine.threads
        turns = []
        for _ in range(_TURNS):
            limits = size / read_bandwidth(threads) / 1e9, operations / peak(threads) / 1e9
            turns.append((*limits, _median(lambda: self._machine.seconds(layout), 0.05)))
        reading, computing, seconds = (median(turn[index] for turn in turns) for index in range(3))
        share = median(100 * max(turn[:2]) / turn[2] for turn in turns)
        unit = "GB/s" if reading > computing else "GOP/s" if peak is int8_peak else "GFLOP/s"
        speed = (size if reading > computing else operations) / seconds / 1e9
        behind = f" behind {self._depth}" if self._depth and operations else ""
        return f"{kernel}, {tokens} token{'s' if tokens > 1 else ''}{behind}", speed, unit, share

    def _step(self, tokens: int) -> None:
        """Set the tape's arguments for a step of this many tokens, and fill the cache."""
        manager = CacheManager(self._spec)
        lane = manager.open()
        if self._depth:
            manager.plan([Chunk(lane, [0] * self._depth)])
        plan = manager.plan([Chunk(lane, [0] * tokens)])
        self._values.update(plan)
        self._cache.make_room(plan)
        pages = manager.pages(lane)[0]  # of the only layer group
        saved = self._cache.read(0, pages)
        for array in saved.values():
            array.fill(_FILL)
        self._cache.write(0, pages, saved)


def _tensor(name: str, shape: tuple[int, ...], kind: str) -> Tensor:
    """A weight in untouched memory, which the system allocates when it is filled."""
    if len(shape) == 1:
        return DenseTensor(name, "float32", np.ones(shape, np.float32))
    if kind in _FLOATS:
        return DenseTensor(name, kind, np.empty(shape, _FLOATS[kind]))
    from gguf import GGMLQuantizationType

    rows, columns = shape
    blocks = np.empty((rows, columns // BLOCKS[kind].columns * BLOCKS[kind].bytes), np.uint8)
    return QuantTensor(name, shape, GGMLQuantizationType[kind.upper()], blocks)


def _rows(machine: _Machine) -> Iterator[Row]:
    for kind in (*BLOCKS, *_FLOATS):
        layers = -(-_DISTINCT // _Model(machine, kind, 1).weight_bytes)
        model = _Model(machine, kind, layers)
        yield model.linears(1, layers)
        if kind in BLOCKS:
            yield model.linears(8, layers)
        yield model.linears(_CHUNK, 1)
    for layers, tokens in ((16, 1), (1, _CHUNK)):
        yield _Model(machine, "q4_0", layers, _DEPTH).attention(tokens)
    for kernel in ("quantize", "rms_norm"):
        yield _Model(machine, "q4_0", 4).rows(kernel, _CHUNK)

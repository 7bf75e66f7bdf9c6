"""The boundary between the core and a backend: the protocols Backend and Program, and their values."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import BackendError
from mistral_portable.graph import Graph
from mistral_portable.weights import DenseTensor, Tensor

__all__ = [
    "INT8_BLOCK",
    "OWN_QUANTIZE",
    "Q8_0_BLOCK",
    "Availability",
    "Backend",
    "ExecutorOptions",
    "FunctionalBackend",
    "GreedyProgram",
    "GreedyStep",
    "LaneState",
    "OwnMemory",
    "Precision",
    "Program",
    "PureFunction",
    "Quantizer",
    "QuantizingBackend",
    "require_supported",
]

INT8_BLOCK = 128
"""Columns of a linear's input that share one int8 scale (see Precision)."""

Q8_0_BLOCK = 32
"""Numbers of a cached head that share one q8_0 scale (see Precision)."""

OWN_QUANTIZE = ("nf4", "fp4", "int8")
"""Quantized types of float weights that a backend makes itself, where others are ggml's (weights.quantize)."""

LaneState = Mapping[str, NDArray[Any]]
"""A lane's arrays by name; what the names mean is the backend's own business. Saved with `numpy.savez`."""


@dataclass(frozen=True)
class Availability:
    """What `probe` finds. `score` 0: unusable, and `reason` says why and what to do; else the highest score wins
    `backend="auto"`, and `reason` says what would run (device, instruction set, versions)."""

    score: int
    reason: str


@dataclass(frozen=True)
class ExecutorOptions:
    """What the user asked of an executor. None: the backend's own choice.

    dtype: the float type of the activations ("float32", "float64", "bfloat16", "float16"), or "int8": linears over
    quantized weights take int8 inputs, everything else is float32.
    threads: CPU threads; the backend's choice should be the physical cores that this process may use.
    progress: called as (what, done, total), in any unit, while weights are read or kernels compiled.
    kv_cache: the type of cached keys and values ("float32", "float16", "q8_0").
    device: where to run, of a backend that has several ("cpu", "cuda:1"). attention: its kernel, likewise ("sdpa").
    quantize: one of OWN_QUANTIZE, to be made of float matrices as they are read.
    tensor_parallel: processes that share a model; each of them makes the same steps.
    """

    dtype: str | None = None
    threads: int | None = None
    progress: Callable[[str, int, int], None] | None = None
    kv_cache: str | None = None
    device: str | None = None
    attention: str | None = None
    quantize: str | None = None
    tensor_parallel: int | None = None

    def refuse(self, backend: str, *names: str) -> None:
        """Raise BackendError if the user has set one of the options `names`, of which `backend` has no choice."""
        for name in names:
            if (value := getattr(self, name)) is not None:
                raise BackendError(f"{name}={value!r}: backend {backend!r} has no choice of it; leave the option out")


@dataclass(frozen=True)
class Precision:
    """Where a program rounds, so that the conformance kit can imitate it and knows what errors are honest.

    dtype: the float type of the activations. The rest is rounded besides, if it is not None:

    quantized_linear: "int8": the input of a `linear` whose weight is in ggml blocks, in blocks of INT8_BLOCK columns.
    kv_cache: keys and values as they are written: a float type, or "q8_0", in blocks of Q8_0_BLOCK along head_dim.

    The numbers of a block, the last of which may be shorter, become `round(x / scale) * scale` with
    `scale = max|x| / 127`; q8_0 keeps its scales in float16. [1, -2, 127] with scale 1 stays as it is.
    """

    dtype: str = "float32"
    quantized_linear: str | None = None
    kv_cache: str | None = None


class Program(Protocol):
    """A graph that is ready to run, with its weights and its cache arrays. Not safe for concurrent steps."""

    @property
    def precision(self) -> Precision:
        """Where it rounds."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of key and value arrays now allocated."""

    def step(
        self, plan: StepPlan, inputs_embeds: NDArray[np.float32] | None = None
    ) -> Mapping[str, NDArray[np.float32]]:
        """Run the graph on the plan's tokens: every graph output by name, float32 (float64 in float64 programs).

        `logits` is [R, vocab_size] where the graph selects rows. Arrays are the caller's own. inputs_embeds: float32
        [T, hidden_size], what `embedding` nodes then give in this step, in place of the rows of the plan's tokens.
        Raises CacheError if there is no memory for a longer cache; the step then has not taken place, whatever it has
        written.
        """

    def copy_lane(self, source: int, target: int) -> None:
        """Copy the keys and values of one lane to another (a fork's shared prefix)."""

    def save_lane(self, lane: int) -> LaneState:
        """Copies of the lane's arrays."""

    def load_lane(self, lane: int, state: LaneState) -> None:
        """Put arrays from `save_lane` into a lane. Raises CacheError if they are not this model's.

        They may be longer than the lane, if it was saved where lanes are larger: then no ring had wrapped (the
        manager's `load` checks it), and the surplus slots are unused.
        """

    def close(self) -> None:
        """Release threads, device memory and files; the program cannot step afterwards."""


@runtime_checkable
class OwnMemory(Protocol):
    """A program whose memory is not, or not only, what the system counts for the process: that of a GPU."""

    @property
    def peak_memory_bytes(self) -> int:
        """The most that its framework has held in this process: weights, cache and scratch."""


class GreedyStep(Protocol):
    """A step that has begun, of which the host has read nothing yet."""

    def tokens(self) -> NDArray[np.int32]:
        """Wait for it: per row of its plan the id of the highest logit, the lowest one on ties, as the sampler's.

        -1 where the sampler would refuse: the row holds NaN, or its highest logit is infinite.
        """


@runtime_checkable
class GreedyProgram(Protocol):
    """A program whose device takes the likeliest token itself: the next step begins before the host has read it."""

    def begin_greedy(self, plan: StepPlan, after: GreedyStep | None = None) -> GreedyStep:
        """Begin a step and return at once. `after`: a step of this program, whose tokens, row by row, are this one's

        (the plan's own mean nothing then). Raises as `step`.
        """


class Backend(Protocol):
    """A way to run graphs. The object is a tiny descriptor: importing it imports no framework."""

    @property
    def name(self) -> str:
        """The name for `backend=` and `--backend`."""

    def probe(self) -> Availability:
        """Whether it can run here. Imports the framework if it must; never raises for a missing one."""

    def supports(self, op: str, dtype: str) -> str | None:
        """None if the op runs in this dtype (of ExecutorOptions), else the reason why not."""

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        """Lower a verified graph. `weights` holds every part of every parameter, by its checkpoint name.

        Raises BackendError, with the remedy, for an op, dtype or option that it does not support.
        """


def require_supported(backend: Backend, graph: Graph, dtype: str) -> None:
    """Raise BackendError, with the backend's reason, for an op of the graph that it does not run in this dtype."""
    for op in sorted({node.op for node in graph.nodes}):
        if reason := backend.supports(op, dtype):
            raise BackendError(f"backend {backend.name!r} cannot run {op!r}: {reason}")


class Quantizer(Protocol):
    """Makes ggml blocks of floats, of the types that it was made for. Not safe for concurrent calls."""

    def blocks(self, rows: DenseTensor, type: str, importance: NDArray[np.float32]) -> NDArray[np.uint8]:
        """uint8 [rows, bytes_per_row], as close to `rows` as it can: what is small is the sum over each block of
        `importance`, float32 [columns], times the squared error. A row's blocks do not depend on other rows.

        type: a ggml type such as "q4_k"; its blocks fill the rows. Raises CheckpointError, with the tensor's name, if a
        number is not finite, or larger than the type can hold.
        """

    def close(self) -> None:
        """Release its threads; it makes no blocks afterwards."""


@runtime_checkable
class QuantizingBackend(Backend, Protocol):
    """A backend that also makes ggml blocks: `quantize` asks for it, and `load` for what is quantized as it is read."""

    def quantizer(self, types: Collection[str], options: ExecutorOptions) -> Quantizer:
        """For these types; of the options `threads` and `progress` count."""


class PureFunction(Protocol):
    """A graph as a function of weights, cache and tokens, which changes none of them: what its framework can compile,
    differentiate and batch, also as a part of something larger. Arrays are the framework's.
    """

    def weights(self, weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """The graph's parameters by name, float32; what is packed is unpacked."""

    def init_cache(self, rows: int, length: int) -> Mapping[str, Any]:
        """Room for `length` columns of `rows` sequences."""

    def __call__(
        self, weights: Mapping[str, Any], cache: Mapping[str, Any], tokens: Any, kept: Any
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Every output of the graph, float32, and the cache with these columns behind those before.

        tokens: integers [rows, columns], or floats [rows, columns, hidden_size] in place of their embeddings. kept: 0
        where they are padding, [rows, columns] or, if it is wider, of the cache's columns. Outputs are [rows, columns,
        ...], attention weights [rows, heads, columns, cached columns]; what is at padding is 0. Neither token ids nor
        the room in the cache are checked, as they may not be known yet.
        """


@runtime_checkable
class FunctionalBackend(Backend, Protocol):
    """A backend that has its graphs as pure functions, too: the Flax classes ask for it."""

    def pure(self, graph: Graph, dtype: str) -> PureFunction:
        """Of a verified graph that selects no rows, computed in `dtype`. Raises BackendError as `prepare`."""

    def register(self, kind: type) -> None:
        """Let traced functions return dataclasses of this kind: their fields are arrays, or nests of them, or None."""

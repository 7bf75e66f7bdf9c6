"""Program: a graph that is ready to run, and the values that it exchanges with the core."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import StepPlan

__all__ = [
    "INT8_BLOCK",
    "NO_INPUTS",
    "Q8_0_BLOCK",
    "ChunkingProgram",
    "DrawingProgram",
    "DrawnStep",
    "Draws",
    "GreedyProgram",
    "Inputs",
    "LaneState",
    "OwnMemory",
    "PipelinedProgram",
    "Precision",
    "Program",
    "Step",
    "StepInPipeline",
]

INT8_BLOCK = 128
"""Columns of a linear's input that share one int8 scale (see Precision)."""

Q8_0_BLOCK = 32
"""Numbers of a cached head that share one q8_0 scale (see Precision)."""

LaneState = Mapping[str, NDArray[Any]]
"""Arrays of pages of one layer group by name, "keys.LAYER" say, each [pages, ...]; the backend's own business."""

Inputs = Mapping[str, NDArray[Any]]
"""Arrays for the inputs that a graph declares beyond those of the StepPlan, by name."""

NO_INPUTS: Inputs = MappingProxyType({})


@dataclass(frozen=True)
class Precision:
    """Where a program rounds, so that the conformance kit can imitate it and knows what errors are honest.

    dtype: the float type of the activations. The rest is rounded besides, if it is not None:

    quantized_linear: "int8": the input of a `linear` whose weight is in ggml blocks, in blocks of INT8_BLOCK columns.
    kv_cache: keys and values as they are written: a float type, or "q8_0", in blocks of Q8_0_BLOCK along head_dim.
    Beside "q8_0" an executor may round queries and attention weights, too, to 16 bits of the largest one of a row,
    which is 1/256 of the keys' step.

    The numbers of a block, the last of which may be shorter, become `round(x / scale) * scale` with
    `scale = max|x| / 127`; q8_0 keeps its scales in float16. [1, -2, 127] with scale 1 stays as it is.
    """

    dtype: str = "float32"
    quantized_linear: str | None = None
    kv_cache: str | None = None


class Program(Protocol):
    """A graph that is ready to run, with its weights and its cache arrays.

    Safe from several threads: calls take turns. After `close` every call but `close` raises ClosedError.
    """

    @property
    def precision(self) -> Precision:
        """Where it rounds."""

    @property
    def batch_invariant(self) -> bool:
        """Whether the bits of a token's outputs depend on the tokens of its own sequence alone.

        True promises that a token's outputs (the logits, and so the text that is sampled from them) have the same
        bits alone and beside any other sequences, in chunks of any sizes, in any pages, with any rows requested, and
        after rollbacks, forks, and saving and loading. They have the same bits in other programs of the
        same graph, weights and options on this machine: with any number of threads, in a forked child if the executor
        works in one, and with any CacheSpec of the same windows and page size. Attention weights are not promised.

        Example: the logits of "a b c d" in one step, in the steps "a" and "b c d", and beside "x y", are equal arrays.

        False promises nothing: outputs may differ by rounding, within the tolerance that the conformance kit allows.
        """

    @property
    def cache_bytes(self) -> int:
        """Bytes of key and value arrays now allocated."""

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the buffers that it keeps between steps, beside weights and cache; 0 where its framework owns them
        (see OwnMemory)."""

    def slot_bytes(self, group: int) -> int:
        """Bytes of a slot of the layer group `CacheSpec.groups[group]`: a key and a value in each of its layers.

        A page of 64 slots takes 64 times as much. Mistral 7B, float16: 32 layers * 2 * 8 heads * 128 * 2 = 128 KiB.
        """

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> Mapping[str, NDArray[np.float32]]:
        """Run the graph on the plan's tokens: every graph output by name, float32 (float64 in float64 programs).

        `logits` is [R, vocab_size] where the graph selects rows. Arrays are the caller's own: neither they nor `plan`
        and `inputs` are kept. inputs: an array for each input that the graph declares beyond the plan's
        (`shared.check_inputs` checks them).

        For each layer group the pool has `page_count` pages at least, then `copies` are made, then keys and values are
        written. Raises CapacityError if there is no memory for more pages; the step then has not taken place, and no
        page but those that the plan writes or copies to has changed.
        """

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        """Copies of the arrays of these pages of a layer group, in this order; each page was part of a step's pool.

        blank: slots of the last of these pages, from 0 on, that the copy has zeros in, whatever the page holds there:
        what an earlier sequence left behind the end of this one stays here.

        Example: pages of 4 slots, a lane of 6 tokens in the pages 5 and 2: `read_pages(0, [5, 2], [2, 3])`.
        """

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        """Put arrays from `read_pages`, perhaps of another program of the model, into these pages of a layer group.

        The pool grows to hold them. Raises CacheError if they are not this model's, CapacityError if there is no memory
        for the pages; nothing has changed then.
        """

    def close(self) -> None:
        """Release threads, device memory and files; the program cannot step afterwards."""


@runtime_checkable
class ChunkingProgram(Protocol):
    """A program that reads prompts faster in other chunks than those of the CacheSpec that it was prepared with. Its
    cache is in pages: the size of a ring depends on the chunk."""

    @property
    def prompt_chunk(self) -> int:
        """Tokens of a step that reads prompts. It takes plans of the same spec with this `max_chunk`."""


@runtime_checkable
class OwnMemory(Protocol):
    """A program whose memory is not, or not only, what the system counts for the process: that of a GPU."""

    @property
    def peak_memory_bytes(self) -> int:
        """The most that its framework has held in this process: weights, cache and scratch."""


class Step(Protocol):
    """A step that was submitted: the device computes it, and the host reads its tokens when it needs them."""

    def tokens(self) -> NDArray[np.int32]:
        """Wait for the step: per row of its plan the id of the highest logit, the lowest one on ties, as the sampler's.

        -1 where the sampler would refuse: the row holds NaN, or its highest logit is infinite.
        """


@runtime_checkable
class GreedyProgram(Protocol):
    """A program whose device takes the argmax itself: the next step begins before the host has read its tokens."""

    def submit(self, plan: StepPlan, inputs: Inputs = NO_INPUTS, *, after: Step | None = None) -> Step:
        """Begin a step of at least one requested row, and return at once. Inputs and errors are those of `step`.

        after: a step of this program that was submitted before; its tokens need not have been read. Where
        `plan.sources[t]` is r >= 0, its row r has the token, and `plan.tokens[t]` means nothing. A row without one, -1,
        stands for any token: the caller ends that sequence when it reads the row. Raises InputError for sources that
        `after` does not have.

        Example: sequences A and B have decoded in `after`, in this order, and the token of B, in row 1, is not known
        yet. Now C begins beside B: tokens [7 8 9 | 0], sources [-1 -1 -1 | 1].
        """


@dataclass(frozen=True)
class Draws:
    """How the token of each requested row of a step is drawn, by the rule of the sampler: arrays [R].

    numbers: float64, each row's random number in [0, 1). temperatures: float64; 0: the highest logit, whatever the rest
    says. top_k: int32; 0: off. top_p: float64; 1: off. min_p: float64; 0: off. They apply in this order, as in
    `sampling.processors`; then the first token is drawn, in order of ids, at which the cumulative probability exceeds
    the number.

    Example: the logits log(0.2), log(0.5), log(0.3), temperature 1 and number 0.4 draw token 1; with top_k 1, too.
    """

    numbers: NDArray[np.float64]
    temperatures: NDArray[np.float64]
    top_k: NDArray[np.int32]
    top_p: NDArray[np.float64]
    min_p: NDArray[np.float64]


class DrawnStep(Step, Protocol):
    """A step whose tokens the device draws."""

    def tokens(self) -> NDArray[np.int32]:
        """Wait for the step: per row of its plan the token that the sampler would draw.

        -1 where the sampler must choose, by `logits`: the number is so near to a bound between two tokens that rounding
        decides, or the sampler would refuse the row.
        """

    def logits(self, row: int) -> NDArray[np.float32]:
        """Wait for the step: the logits of a row, float32 [vocab_size]."""


@runtime_checkable
class DrawingProgram(GreedyProgram, Protocol):
    """A GreedyProgram whose device draws tokens, too, with the host's random numbers."""

    def draw(self, plan: StepPlan, draws: Draws, inputs: Inputs = NO_INPUTS, *, after: Step | None = None) -> DrawnStep:
        """Begin a step as `submit` does, whose tokens are drawn. A row of -1 stands for any token: once the sampler has
        chosen it, the caller has its sequence read it again."""


class StepInPipeline(Protocol):
    """A step that has begun."""

    def outputs(self) -> Mapping[str, NDArray[np.float32]]:
        """Wait for the step and return what `Program.step` does, or raise its errors; the same each time."""


@runtime_checkable
class PipelinedProgram(Protocol):
    """A program in stages, each of which works on another step: it is busy while several have begun."""

    @property
    def depth(self) -> int:
        """Steps that it works on at a time."""

    def begin(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> StepInPipeline:
        """Begin a step, and return at once. Steps take place in the order in which they have begun.

        A step that fails leaves others, that have begun since, as they are: these are of other sequences.
        """

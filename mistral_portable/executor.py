"""The boundary between the core and a backend: the protocols Backend and Program, and their values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor

__all__ = ["Availability", "Backend", "ExecutorOptions", "LaneState", "Program"]

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

    dtype: the float type of the activations ("float32", "float64", "bfloat16", "float16").
    threads: CPU threads. progress: called as (what, done, total), in bytes, while weights are read.
    """

    dtype: str | None = None
    threads: int | None = None
    progress: Callable[[str, int, int], None] | None = None


class Program(Protocol):
    """A graph that is ready to run, with its weights and its cache arrays. Not safe for concurrent steps."""

    @property
    def dtype(self) -> str:
        """The float type of the activations."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of key and value arrays now allocated."""

    def step(self, plan: StepPlan) -> Mapping[str, NDArray[np.float32]]:
        """Run the graph on the plan's tokens: every graph output by name, float32 (float64 in float64 programs).

        `logits` is [R, vocab_size] where the graph selects rows. Arrays are the caller's own.
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


class Backend(Protocol):
    """A way to run graphs. The object is a tiny descriptor: importing it imports no framework."""

    @property
    def name(self) -> str:
        """The name for `backend=` and `--backend`."""

    def probe(self) -> Availability:
        """Whether it can run here. Imports the framework if it must; never raises for a missing one."""

    def supports(self, op: str, dtype: str) -> str | None:
        """None if the op runs in this dtype, else the reason why not."""

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        """Lower a verified graph. `weights` holds every part of every parameter, by its checkpoint name.

        Raises BackendError, with the remedy, for an op, dtype or option that it does not support.
        """

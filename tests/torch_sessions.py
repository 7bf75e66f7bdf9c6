"""Programs of the torch executor with small pages, so that short texts fill some, and with chosen kernels.

`flash_kernels.py` stands for the kernels of GPUs, and `Repeated` for recorded steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mistral_portable_torch import BACKEND
from mistral_portable_torch.attention import Attention, choose
from mistral_portable_torch.device import find_device
from mistral_portable_torch.memory import Memory
from mistral_portable_torch.parallel import Group
from mistral_portable_torch.program import AsynchronousProgram
from numpy.typing import NDArray

from mistral_portable.boundary import Availability, Capabilities, ExecutorOptions, Precision, prepare
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.graph import Graph, build
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing import random_weights
from mistral_portable.weights import Tensor

CONFIG = MistralConfig(
    vocab_size=40,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    sliding_window=20,
)


class Repeated:
    """Stands for CUDA graphs: a replay calls the function again and overwrites the outputs. Counts both."""

    def __init__(self) -> None:
        self.records = self.replays = 0

    def __call__(self, function: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], Callable[[], None]]:
        self.records += 1
        outputs = function()

        def replay() -> None:
            self.replays += 1
            for name, again in function().items():
                for old, new in zip(_listed(outputs[name]), _listed(again), strict=True):
                    old.copy_(new)

        return outputs, replay


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@dataclass(frozen=True)
class PagedBackend:
    """The executor on the CPU, with the argmax on the device as on a GPU. kernel: used instead of the option's."""

    page: int = 3
    kernel: Attention | None = None
    record: Repeated | None = None
    group: Group | None = None
    memory: int | None = None
    name: str = "torch"

    def probe(self) -> Availability:
        return BACKEND.probe()

    @property
    def capabilities(self) -> Capabilities:
        return replace(BACKEND.capabilities, page_size=self.page)

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        return "float32"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> AsynchronousProgram:
        device, dtype = find_device("cpu"), options.dtype or "float32"
        kernel = self.kernel or choose(options.attention, device, dtype, cache.head_dim)
        return AsynchronousProgram(
            graph,
            weights,
            cache,
            Precision(dtype),
            device,
            kernel,
            Memory(device, self.memory),
            record=self.record,
            quantize=options.quantize,
            group=self.group,
        )


class Session:
    """A program and its cache manager."""

    def __init__(
        self,
        config: MistralConfig = CONFIG,
        backend: PagedBackend | None = None,
        *,
        max_context: int = 400,
        max_chunk: int = 48,
        quantization: str | None = None,
        weights: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """weights: None draws them."""
        backend = backend or PagedBackend()
        self.spec = CacheSpec.from_config(
            config, max_context=max_context, page_size=backend.page, max_chunk=max_chunk, max_lanes=4
        )
        self.manager = CacheManager(self.spec)
        weights = weights or random_weights(build(config), 0, quantization)
        graph = select_rows(build(config), "logits")
        self.program = prepare(backend, graph, weights, self.spec, ExecutorOptions(**options))

    def feed(self, lane: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens in chunks, one step each; the logits after each token. A step that fails is undone."""
        size, found = self.spec.max_chunk, []
        for begin in range(0, len(tokens), size):
            chunk = tokens[begin : begin + size]
            plan = self.manager.plan([Chunk(lane, chunk, range(len(chunk)))])
            try:
                found.append(self.program.step(plan)["logits"])
            except BaseException:
                self.manager.undo(plan)
                raise
        return np.concatenate(found)

    def begin(self, tokens: Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """Open a lane and feed it these tokens; the lane and their logits."""
        lane = self.manager.open()
        return lane, self.feed(lane, tokens)

    def decode(self, lane: int, count: int) -> None:
        """Feed tokens in steps of one each."""
        for token in text(count, seed=1):
            self.feed(lane, [token])


def text(length: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length)]


def alone(count: int) -> NDArray[np.float32]:
    """Logits behind token 1, which follows a text of this length in a session of its own."""
    session = Session()
    lane, _ = session.begin(text(count))
    return session.feed(lane, [1])

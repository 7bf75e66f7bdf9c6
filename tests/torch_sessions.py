"""Programs of the torch executor with small pages, so that short texts fill some, and with chosen kernels.

`flash_kernels.py` stands for the kernels of GPUs, and `Repeated` for recorded steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mistral_portable_torch import BACKEND
from mistral_portable_torch.attention import Attention, choose
from mistral_portable_torch.device import find_device
from mistral_portable_torch.memory import Memory
from mistral_portable_torch.processes import Group
from mistral_portable_torch.program import DrawingTorchProgram
from numpy.typing import NDArray
from program_sessions import CONFIG, ProgramSession, text

from mistral_portable.boundary import Availability, Capabilities, ExecutorOptions, Precision
from mistral_portable.cache import CacheSpec
from mistral_portable.config import MistralConfig
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor

__all__ = ["CONFIG", "PagedBackend", "Repeated", "Session", "alone", "text"]


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
    """The executor on the CPU, which chooses tokens as on a GPU. kernel: used instead of the option's.
    chunk: tokens of a step that reads prompts, where memory suffices."""

    page: int = 3
    kernel: Attention | None = None
    record: Repeated | None = None
    group: Group | None = None
    memory: int | None = None
    chunk: int | None = None
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
    ) -> DrawingTorchProgram:
        device, dtype = find_device("cpu"), options.dtype or "float32"
        kernel = self.kernel or choose(options.attention, device, dtype, cache.head_dim)
        return DrawingTorchProgram(
            graph,
            weights,
            cache,
            Precision(dtype),
            device,
            kernel,
            Memory(device, self.memory, self.group),
            chunk=self.chunk,
            record=self.record,
            quantize=options.quantize,
            group=self.group,
        )


class Session(ProgramSession[DrawingTorchProgram]):
    """A torch program."""

    def __init__(self, config: MistralConfig = CONFIG, backend: PagedBackend | None = None, **options: Any) -> None:
        backend = backend or PagedBackend()
        super().__init__(backend, config, None, page_size=backend.page, **options)


def alone(count: int) -> NDArray[np.float32]:
    """Logits behind token 1, which follows a text of this length in a session of its own."""
    session = Session()
    lane, _ = session.begin(text(count))
    return session.feed(lane, [1])

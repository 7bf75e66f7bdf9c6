"""Opening: a checkpoint as a graph with tensors and the sizes of a cache; the same in each process that opens it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.boundary.binding import check_tensors
from mistral_portable.boundary.registry import select
from mistral_portable.cache import CacheSpec
from mistral_portable.config import MistralConfig, Window
from mistral_portable.engine.adapters import Adapters, Chosen
from mistral_portable.engine.block_maker import block_maker
from mistral_portable.engine.chunks import CHUNK
from mistral_portable.errors import InputError
from mistral_portable.graph import Graph, build, verify
from mistral_portable.graph.passes import EMBEDDING, expose_embedding, select_rows
from mistral_portable.weights import Checkpoint, Tensor, fingerprint, open_checkpoint

__all__ = ["Opened", "Opening"]


@dataclass(frozen=True)
class Opened:
    """A model before its weights are read: the graph of its steps, all tensors by name, and the sizes of its cache."""

    checkpoint: Checkpoint
    config: MistralConfig
    adapters: Adapters
    graph: Graph
    tensors: Mapping[str, Tensor]
    spec: CacheSpec

    @property
    def fingerprint(self) -> str:
        """The name of its weights, without adapters."""
        return fingerprint(self.config, self.checkpoint.tensors)


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The arguments of `load` that decide what a model computes. Picklable, if `options` have no progress.

    model, revision, window, max_context, max_lanes, embeddings, adapters, adapter: as `load` has them. backend: the
    executor's name. quantize: a type of ggml blocks, or None.
    """

    model: str | Path
    revision: str | None
    backend: str
    options: ExecutorOptions
    quantize: str | None
    window: Window | Literal["config"]
    max_context: int | None
    max_lanes: int
    embeddings: bool
    adapters: Mapping[str, str | Path]
    adapter: Chosen

    def open(self) -> Opened:
        """Open the files. Raises CheckpointError, ConfigError, InputError, and BackendError."""
        progress = self.options.progress
        make = block_maker(self.options.threads, progress)
        checkpoint = open_checkpoint(
            self.model, revision=self.revision, quantize=self.quantize, make=make, progress=progress
        )
        config = checkpoint.config if self.window == "config" else checkpoint.config.with_window(self.window)
        limit = config.max_position_embeddings
        context = limit if self.max_context is None else self.max_context
        if context > limit:
            raise InputError(f"max_context={context} must be from 1 to max_position_embeddings={limit}")
        adapting = Adapters(self.adapters, self.adapter, config)
        changed, added = adapting.add_to(build(config))
        whole, tensors = verify(changed), {**checkpoint.tensors, **added}
        outputs = ("logits", EMBEDDING) if self.embeddings else ("logits",)
        graph = verify(select_rows(expose_embedding(whole) if self.embeddings else whole, *outputs))
        check_tensors(graph, tensors, str(checkpoint.path))
        spec = CacheSpec.from_config(
            config,
            max_context=context,
            page_size=select(self.backend).capabilities.page_size,
            max_chunk=CHUNK,
            max_lanes=self.max_lanes,
        )
        return Opened(checkpoint, config, adapting, graph, tensors, spec)

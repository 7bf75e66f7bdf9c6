"""The engines that `tools/bench.py` compares, each in a process of its own. Not a command."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import Any, Self, TypeVar

import mistral_portable as mp
from mistral_portable.bench import Engine, Measurement, ModelEngine, measure, prepare
from mistral_portable.engine.generation import peak_memory_bytes
from mistral_portable.weights import open_checkpoint

__all__ = ["PEERS", "MlxLm", "Setup", "Worker"]

T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """An engine (peer None: this library) and the model and options that it runs.

    isa: the instruction set that the numba backend is restricted to. program: for a peer that is a llama-bench, its
    path.
    """

    peer: str | None
    model: str
    backend: str
    threads: int | None
    lanes: int
    quantize: str | None = None
    dtype: str | None = None
    device: str | None = None
    isa: str | None = None
    program: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables of its process that this one lacks."""
        return {"MISTRAL_PORTABLE_ISA": self.isa} if self.isa else {}


class Worker:
    """An engine in a process of its own; it loads the model at the first `run`, and sleeps between calls."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._pool = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_set_environment, initargs=(setup.environment,)
        )

    def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call `function(engine, *arguments)` in the process and return its result. Raises what the function raises."""
        return self._pool.submit(_run, self._setup, function, arguments).result()

    def prepare(self, measurement: Measurement, repeats: int) -> bool:
        """Fill the sequences, so that `seconds` can measure; True: any engine that takes steps can."""
        self.run(prepare, measurement, repeats)
        return True

    def seconds(self, measurement: Measurement, repeats: int) -> float:
        """Run one repetition; its seconds."""
        return self.run(measure, measurement, repeats)

    def peak_memory(self) -> int:
        """The engine's peak memory so far, in bytes."""
        return self.run(_peak)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def _run(setup: Setup, function: Callable[..., T], arguments: Sequence[object]) -> T:
    return function(_engine(setup), *arguments)


def _peak(engine: Engine) -> int:
    return engine.peak_memory_bytes


@cache
def _engine(setup: Setup) -> Engine:
    if setup.peer is not None:
        return PEERS[setup.peer](setup)
    model = mp.load(
        setup.model,
        backend=setup.backend,
        dtype=setup.dtype,
        device=setup.device,
        threads=setup.threads,
        quantize=setup.quantize,
        max_lanes=setup.lanes,
    )
    return ModelEngine(model)


class _InProcess:
    """Base of the engines whose memory is that of their process."""

    @property
    def peak_memory_bytes(self) -> int:
        return peak_memory_bytes()


class LlamaCpp(_InProcess):
    """llama.cpp through its C interface, with its defaults: weights mapped and repacked, flash attention on auto."""

    _BATCH = 512

    def __init__(self, setup: Setup) -> None:
        import llama_cpp

        self._c = llama_cpp
        self._threads = setup.threads or os.cpu_count()
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, None)
        self._model = llama_cpp.llama_model_load_from_file(setup.model.encode(), llama_cpp.llama_model_default_params())
        if self._model is None:
            raise RuntimeError(f"llama.cpp cannot load {setup.model}")
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.max_context: int = llama_cpp.llama_model_n_ctx_train(self._model)
        self._sizes = (0, 0)
        self._context: Any = None
        self._length = 0

    def reset(self, sequences: int, room: int) -> None:
        self._length = 0
        if self._sizes == (sequences, room):
            self._c.llama_memory_clear(self._c.llama_get_memory(self._context), False)
            return
        if self._context is not None:
            self._c.llama_free(self._context)
        params = self._c.llama_context_default_params()
        params.n_ctx = sequences * (room + 255 & -256)  # each sequence has its part, in blocks of 256
        params.n_seq_max = sequences
        params.n_batch = self._BATCH
        params.n_threads = params.n_threads_batch = self._threads
        self._context = self._c.llama_init_from_model(self._model, params)
        if self._context is None:
            raise RuntimeError(f"llama.cpp makes no context of {sequences} x {room} tokens")
        self._sizes = (sequences, room)

    def step(self, chunks: Sequence[Sequence[int]], rows: int) -> None:
        batch = self._c.llama_batch_init(sum(map(len, chunks)), 0, 1)
        for sequence, chunk in enumerate(chunks):
            for offset, token in enumerate(chunk):
                at = batch.n_tokens
                batch.token[at] = token
                batch.pos[at] = self._length + offset
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = sequence
                batch.logits[at] = offset >= len(chunk) - rows
                batch.n_tokens += 1
        status = self._c.llama_decode(self._context, batch)
        self._c.llama_synchronize(self._context)
        self._c.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        self._length += len(chunks[0])


class Transformers:
    """transformers in bfloat16 with SDPA. Its weights are random, of the model's shape: it cannot read GGUF blocks."""

    def __init__(self, setup: Setup) -> None:
        import torch
        from transformers import MistralConfig, MistralForCausalLM

        torch.set_num_threads(setup.threads or os.cpu_count() or 1)
        config = open_checkpoint(setup.model).config
        torch.set_default_dtype(torch.bfloat16)
        self._device = torch.device(setup.device or "cpu")
        with self._device:
            self._model = MistralForCausalLM(MistralConfig(**config.to_dict() | {"attn_implementation": "sdpa"}))
        self.vocab_size = config.vocab_size
        self.max_context = config.max_position_embeddings
        self._cache: Any = None

    @property
    def peak_memory_bytes(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else peak_memory_bytes()

    def reset(self, sequences: int, room: int) -> None:
        self._cache = None

    def step(self, chunks: Sequence[Sequence[int]], rows: int) -> None:
        import torch

        with torch.inference_mode():
            tokens = torch.tensor(chunks, device=self._device)
            output = self._model(tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=max(1, rows))
            if rows:
                output.logits.cpu()
        self._cache = output.past_key_values


class MlxLm:
    """mlx-lm on the same folder, with its defaults. `quantize` is 4 bits in groups of 32: as many bytes as q4_0."""

    def __init__(self, setup: Setup) -> None:
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache
        from mlx_lm.utils import load_model, quantize_model

        if setup.quantize not in (None, "q4_0"):
            raise RuntimeError(f"mlx-lm has nothing like {setup.quantize}: choose --quantize q4_0 or none")
        checkpoint = open_checkpoint(setup.model)
        if checkpoint.format != "safetensors":
            raise RuntimeError(f"mlx-lm reads no {checkpoint.format} files: give a folder with safetensors")
        self._mx, self._make_cache = mx, make_prompt_cache
        self._model, config = load_model(checkpoint.path)
        if setup.quantize:
            self._model, _ = quantize_model(self._model, config, group_size=32, bits=4)
            mx.eval(self._model.parameters())
        self.vocab_size = checkpoint.config.vocab_size
        self.max_context = checkpoint.config.max_position_embeddings
        self._cache: Any = None

    @property
    def peak_memory_bytes(self) -> int:
        return int(self._mx.get_peak_memory())

    def reset(self, sequences: int, room: int) -> None:
        self._cache = self._make_cache(self._model)

    def step(self, chunks: Sequence[Sequence[int]], rows: int) -> None:
        out = self._model(self._mx.array(list(map(list, chunks))), cache=self._cache)
        if rows:  # like its own generate step: evaluate the last row, or only the cache amid a prompt
            self._mx.eval(out[:, -rows:])
        else:
            self._mx.eval([layer.state for layer in self._cache])

    def generated_per_second(self, tokens: int, temperature: float) -> float:
        """Tokens per second of its own loop, after the first one: the device draws, and steps overlap."""
        from mlx_lm.generate import generate_step
        from mlx_lm.sample_utils import make_sampler

        sampler = make_sampler(temperature)
        made = generate_step(self._mx.array([1, 2, 3, 4]), self._model, max_tokens=tokens, sampler=sampler)
        next(made)
        begin = time.perf_counter()
        return sum(1 for _ in made) / (time.perf_counter() - begin)


PEERS: dict[str, Callable[[Setup], Engine]] = {
    "llama.cpp": LlamaCpp,
    "mlx-lm": MlxLm,
    "transformers": Transformers,
}

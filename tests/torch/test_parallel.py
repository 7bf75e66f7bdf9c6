"""Tensor parallelism: several processes that share a model compute what one computes.

In most tests threads stand for processes, and a barrier for the network; one test starts two real processes.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_torch import BACKEND
from mistral_portable_torch.parallel import Group, shard
from numpy.typing import NDArray
from torch_sessions import CONFIG, PagedBackend

import mistral_portable as mp
from mistral_portable.boundary import Availability, Capabilities, ExecutorOptions, LaneState, Precision
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import BackendError
from mistral_portable.graph import Graph, build, infer_shapes
from mistral_portable.graph.passes import expose_attention_weights, select_rows
from mistral_portable.testing import Case, check, random_weights
from mistral_portable.testing.strategies import configs, scenarios
from mistral_portable.weights import Tensor


class Network:
    """A network of `size` threads, which exchange tensors: each sends one and gets all of them."""

    def __init__(self, size: int) -> None:
        self._barrier, self._given = Barrier(size), [torch.empty(0)] * size

    def exchange(self, rank: int, x: torch.Tensor) -> list[torch.Tensor]:
        self._given[rank] = x
        self._barrier.wait()
        found = list(self._given)
        self._barrier.wait()
        return found


@dataclass(frozen=True)
class Member(Group):
    network: Network = field(default_factory=lambda: Network(1))

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.network.exchange(self.rank, x)).sum(0)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.network.exchange(self.rank, x), dim=-1)


class Together:
    """The programs of all ranks as one: each makes every step, and their outputs must be equal."""

    batch_invariant = False

    def __init__(self, programs: list[Any]) -> None:
        self._programs = programs
        self.precision: Precision = programs[0].precision

    def _all(self, call: Callable[[Any], Any]) -> list[Any]:
        with ThreadPoolExecutor(len(self._programs)) as pool:
            return list(pool.map(call, self._programs))

    def slot_bytes(self, group: int) -> int:
        return sum(int(program.slot_bytes(group)) for program in self._programs)

    @property
    def cache_bytes(self) -> int:
        return sum(program.cache_bytes for program in self._programs)

    @property
    def scratch_bytes(self) -> int:
        return sum(program.scratch_bytes for program in self._programs)

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> Mapping[str, NDArray[np.float32]]:
        outputs = self._all(lambda program: program.step(plan, inputs))
        for other in outputs[1:]:
            for name, array in outputs[0].items():
                np.testing.assert_array_equal(array, other[name])
        first: Mapping[str, NDArray[np.float32]] = outputs[0]
        return first

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        return {
            f"{name}/{rank}": array
            for rank, state in enumerate(self._all(lambda program: program.read_pages(group, pages, blank)))
            for name, array in state.items()
        }

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        for rank, program in enumerate(self._programs):
            own = {name.split("/")[0]: array for name, array in state.items() if name.endswith(f"/{rank}")}
            program.write_pages(group, pages, own)

    def close(self) -> None:
        self._all(lambda program: program.close())


@dataclass(frozen=True)
class ParallelBackend:
    size: int
    name: str = "torch"

    def probe(self) -> Availability:
        return Availability(1, "")

    @property
    def capabilities(self) -> Capabilities:
        return replace(BACKEND.capabilities, page_size=3)

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        return "float32"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Together:
        network = Network(self.size)
        members = [Member(rank, self.size, network) for rank in range(self.size)]
        return Together([PagedBackend(group=member).prepare(graph, weights, cache, options) for member in members])


@pytest.mark.parametrize("quantization", [None, "q4_0"])
@settings(max_examples=12)
@given(
    data=st.data(), size=st.sampled_from([2, 3]), dtype=st.sampled_from(["float32", "bfloat16"]), seed=st.integers(0)
)
def test_shards_compute_what_one_process_computes(
    quantization: str | None, data: st.DataObject, size: int, dtype: str, seed: int
) -> None:
    """Drawn cases with rollbacks and swaps; the LM head is cut if its rows can be divided and it is not the table."""
    config = data.draw(configs(columns=32 if quantization else 1))
    config = replace(
        config,
        num_attention_heads=size * config.num_attention_heads,
        num_key_value_heads=size * config.num_key_value_heads,
        intermediate_size=size * config.intermediate_size,
        num_local_experts=0,
        num_experts_per_tok=0,
    )
    drawn = data.draw(
        scenarios(config.vocab_size, sequences=2, rollback=True, rows=True, swap=data.draw(st.booleans()))
    )
    graph = select_rows(build(config), "logits")
    case = Case("shards", config, graph, random_weights(graph, seed % 2**31, quantization), drawn)
    result = check(case, ParallelBackend(size), ExecutorOptions(dtype=dtype))
    assert result.status == "pass", result


def test_every_process_holds_its_share() -> None:
    graph, weights = select_rows(build(CONFIG), "logits"), random_weights(build(CONFIG), 0)
    spec = CacheSpec.from_config(CONFIG, max_context=64, page_size=256)
    parts = [shard(graph, weights, spec, rank, 2) for rank in range(2)]
    for part in parts:
        infer_shapes(part.graph)
        assert part.spec.num_key_value_heads == CONFIG.num_key_value_heads // 2
        assert set(part.after.values()) == {"sum", "gather"}
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj"):
        whole = f"model.layers.0.{name}.weight"
        rows = [part.weights[whole].numpy() for part in parts]
        np.testing.assert_array_equal(np.concatenate(rows, axis=0), weights[whole].numpy())
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        whole = f"model.layers.1.{name}.weight"
        columns = [part.weights[whole].numpy() for part in parts]
        np.testing.assert_array_equal(np.concatenate(columns, axis=1), weights[whole].numpy())


@pytest.mark.parametrize(
    ("size", "quantization", "message"),
    [
        (4, None, "tensor_parallel=4: 2 key/value heads cannot be divided evenly: choose a divisor of 2"),
        (2, "q4_0", "the 96 columns of .*down_proj.* in blocks of 32: choose fewer processes"),
    ],
)
def test_sizes_that_cannot_be_divided_are_refused(size: int, quantization: str | None, message: str) -> None:
    graph, weights = build(CONFIG), random_weights(build(CONFIG), 0, quantization)
    with pytest.raises(BackendError, match=message):
        shard(graph, weights, CacheSpec.from_config(CONFIG, max_context=64, page_size=256), 0, size)


def test_experts_are_refused() -> None:
    config = replace(CONFIG, num_local_experts=4, num_experts_per_tok=2)
    graph, weights = build(config), random_weights(build(config), 0)
    with pytest.raises(BackendError, match="tensor_parallel=2 cannot divide a model with experts"):
        shard(graph, weights, CacheSpec.from_config(config, max_context=64, page_size=256), 0, 2)


def test_attention_weights_are_refused() -> None:
    graph, weights = expose_attention_weights(build(CONFIG)), random_weights(build(CONFIG), 0)
    with pytest.raises(BackendError, match="tensor_parallel=2 cannot return attention weights"):
        shard(graph, weights, CacheSpec.from_config(CONFIG, max_context=64, page_size=256), 0, 2)


def test_processes_whose_clocks_differ_make_the_same_steps(tmp_path: Path) -> None:
    """Prompts are read beside streams that decode: how many of their tokens in a step must not depend on times."""
    prompts = [list(range(5, 5 + length)) for length in (3, 700, 120)]
    script = tmp_path / "several.py"
    script.write_text(
        f"""
import itertools, json, os, types
import mistral_portable as mp
import mistral_portable.engine.steps as steps

if os.environ["RANK"] == "1":  # each step takes longer than the one before
    ticks = itertools.count()
    steps.time = types.SimpleNamespace(perf_counter=lambda: next(ticks) ** 2.0)
with mp.load("tiny", backend="torch", device="cpu", dtype="float32", tensor_parallel=2) as model:
    streams = [model.stream(prompt, max_tokens=60, temperature=0, ignore_eos=True) for prompt in {prompts}]
    for stream in streams:  # each prompt is read beside those that decode
        for _ in range(9):
            next(stream, None)
    found = [(list(stream), stream.generation)[1] for stream in streams]
    if os.environ["RANK"] == "0":
        print(json.dumps([generation.tokens for generation in found]))
"""
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    with mp.load("tiny", backend="torch", device="cpu", dtype="float32") as model:
        expected = model.generate(prompts, max_tokens=60, temperature=0, ignore_eos=True)
    assert json.loads(done.stdout) == [list(generation.tokens) for generation in expected]


def test_two_processes_write_one_story() -> None:
    """Run torchrun with gloo; only the first process writes."""
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mistral_portable", "run"]
    options = ["--backend", "torch", "--tensor-parallel", "2", "--device", "cpu", "--dtype", "float32"]
    text = ["Once upon a time", "--temperature", "0", "--max-tokens", "70", "--json"]
    done = subprocess.run([sys.executable, *command, *text, *options], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    with mp.load("tiny", backend="torch", device="cpu", dtype="float32") as model:
        expected = model.generate("Once upon a time", max_tokens=70, temperature=0)
    assert json.loads(done.stdout)["tokens"] == list(expected.tokens)

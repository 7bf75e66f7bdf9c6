"""Nodes that are computed together, and how many kernels a layer takes where ours are."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flash_kernels import paged_attend
from mistral_portable_torch import program
from mistral_portable_torch.attention.paged import Paged
from mistral_portable_torch.attention.sdpa import SDPA
from mistral_portable_torch.elementwise import Fused, Plain
from mistral_portable_torch.launches import launches
from torch.utils._python_dispatch import TorchDispatchMode
from torch_sessions import CONFIG, PagedBackend, Session, text

from mistral_portable.graph import Graph, Node, build
from mistral_portable.graph.passes import expose_attention_weights, expose_hidden_states, select_rows

GRAPHS = {
    "plain": build(CONFIG),
    "rows": select_rows(build(CONFIG), "logits"),
    "hidden": expose_hidden_states(build(CONFIG)),
    "weights": expose_attention_weights(build(CONFIG)),
    "experts": build(replace(CONFIG, num_local_experts=4, num_experts_per_tok=2)),
}


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_each_node_is_in_one_launch_behind_what_it_reads(graph: Graph) -> None:
    there = {*graph.inputs, *graph.parameters}
    nodes: list[Node] = []
    for launch in launches(graph):
        assert there >= set(launch.inputs)
        there |= set(launch.results)
        nodes += launch.nodes
    assert sorted(node.name for node in nodes) == sorted(node.name for node in graph.nodes)
    assert there >= set(graph.outputs.values())


def test_sums_are_joined_with_norms_and_rotations_with_the_attention_that_alone_reads_them() -> None:
    def joined(graph: Graph) -> list[str]:
        return [" ".join(node.op for node in launch.nodes) for launch in launches(graph) if len(launch.nodes) > 1]

    layers = CONFIG.num_hidden_layers
    assert joined(GRAPHS["rows"]) == ["rope rope attention", "add rms_norm", "add rms_norm"] * layers
    assert joined(GRAPHS["weights"]) == ["add rms_norm", "add rms_norm"] * layers


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it, here and below
    """Counts operations that launch a kernel: all but views and allocations; and a stand-in for one of ours as one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count, self._inside = 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        views = any(made.alias_info and not made.alias_info.is_write for made in func._schema.returns)
        self.count += not (self._inside or views or "empty" in str(func))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def ours(self, count: int) -> Iterator[None]:
        self.count += count
        self._inside = True
        try:
            yield
        finally:
            self._inside = False


def counted_step(monkeypatch: pytest.MonkeyPatch, layers: int) -> int:
    """The kernels of a decoding step of one sequence, with stand-ins for ours."""
    kernels, plain = Kernels(), Plain()

    def one(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with kernels.ours(1):
                return function(*arguments)

        return run

    def attend(*arguments: Any) -> torch.Tensor:
        with kernels.ours(2 if arguments[-1] > 1 else 1):
            return paged_attend(*arguments)

    names = ("rms_norm", "add_rms_norm", "rope_into", "silu_mul")
    module = SimpleNamespace(**{name: one(getattr(plain, name)) for name in names})
    monkeypatch.setitem(sys.modules, "mistral_portable_torch.elementwise_kernels", module)
    monkeypatch.setattr("mistral_portable_torch.elementwise_kernels", module, raising=False)
    monkeypatch.setattr(program, "elementwise", lambda kind: Fused(plain))
    backend = PagedBackend(page=256, kernel=Paged(attend, SDPA()))
    session = Session(replace(CONFIG, num_hidden_layers=layers), backend, dtype="bfloat16")
    lane, _ = session.begin(text(5))
    kernels.count = 0
    with kernels:
        session.feed(lane, [1])
    return kernels.count


def test_a_layer_takes_ten_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them are attention's, whose parts are merged; before nodes were joined they were 15."""
    few, many = (counted_step(monkeypatch, layers) for layers in (2, 5))
    assert many - few == 3 * 10

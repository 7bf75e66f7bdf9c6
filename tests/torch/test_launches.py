"""Nodes that are computed together, and how many kernels a layer takes where ours are."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flash_kernels import paged_attend
from mistral_portable_torch import matrices, packed, program
from mistral_portable_torch.attempt import Attempt
from mistral_portable_torch.attention.paged import Paged
from mistral_portable_torch.attention.sdpa import SDPA
from mistral_portable_torch.elementwise import Fused, Plain
from mistral_portable_torch.launches import launches
from mistral_portable_torch.matrices import Dense
from mistral_portable_torch.planes import Planes
from torch.utils._python_dispatch import TorchDispatchMode
from torch_sessions import CONFIG, PagedBackend, Session, text

from mistral_portable.graph import Graph, Node, build
from mistral_portable.graph.passes import expose_attention_weights, expose_hidden_states, fuse_linears, select_rows
from mistral_portable.testing import random_weights

GRAPHS = {
    "plain": build(CONFIG),
    "rows": select_rows(build(CONFIG), "logits"),
    "hidden": expose_hidden_states(build(CONFIG)),
    "weights": expose_attention_weights(build(CONFIG)),
    "experts": build(replace(CONFIG, num_local_experts=4, num_experts_per_tok=2)),
    "fused": fuse_linears(select_rows(build(CONFIG), "logits")),
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


def joined(graph: Graph) -> list[str]:
    return [" ".join(node.op for node in launch.nodes) for launch in launches(graph) if len(launch.nodes) > 1]


def test_sums_are_joined_with_norms_and_rotations_with_the_attention_that_alone_reads_them() -> None:
    layers = CONFIG.num_hidden_layers
    assert joined(GRAPHS["rows"]) == ["rope rope attention", "add rms_norm", "add rms_norm"] * layers
    assert joined(GRAPHS["weights"]) == ["add rms_norm", "add rms_norm"] * layers


def test_a_product_is_joined_with_the_swiglu_that_alone_reads_its_halves() -> None:
    graph, gated = GRAPHS["fused"], "linear take_columns take_columns silu_mul"
    layers = ["rope rope attention", "add rms_norm", gated, "add rms_norm"] * CONFIG.num_hidden_layers
    assert sorted(joined(graph)) == sorted(layers)
    for value in ("layers.0.gate", "layers.0.up", "layers.0.gate+layers.0.up"):
        read = replace(graph, outputs={**graph.outputs, "read": value})
        assert joined(read).count(gated) == CONFIG.num_hidden_layers - 1


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


class Ours(Dense):
    """A matrix by which our kernel multiplies a token."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight)
        self.ours = (1,)


def counted_step(layers: int, products: str) -> int:
    """The kernels of a decoding step of one sequence, with stand-ins for ours; its logits must be those without.

    products: by which kernels they are: "torch", or ours for "float" or "packed" matrices.
    """
    kernels, plain = Kernels(), Plain()
    config = replace(CONFIG, num_hidden_layers=layers)
    weights = random_weights(build(config), 0, "q4_0" if products == "packed" else None)
    expected = Session(config, dtype="bfloat16", weights=weights).begin([*text(4), 1])[1][-1:]

    def one(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            with kernels.ours(1):
                return function(*arguments, **options)

        return run

    def attend(*arguments: Any) -> torch.Tensor:
        with kernels.ours(2 if arguments[-1] > 1 else 1):
            return paged_attend(*arguments)

    def multiply(x: torch.Tensor, weight: torch.Tensor | Planes, gated: bool = False) -> torch.Tensor:
        made = x @ (weight.weights(x.dtype) if isinstance(weight, Planes) else weight).T
        return plain.silu_mul(*made.chunk(2, dim=1)) if gated else made

    names = ("rms_norm", "add_rms_norm", "rope_into", "silu_mul")
    modules = {
        "elementwise_kernels": SimpleNamespace(**{name: one(getattr(plain, name)) for name in names}),
        "gemv": SimpleNamespace(MAX_TOKENS=4, MAX_GATED=2, multiply=one(multiply)),
        "tiles": SimpleNamespace(MAX_TOKENS=64, DTYPES=(torch.bfloat16,), multiply=one(multiply)),
        "float_gemv": SimpleNamespace(multiply=one(multiply)),
        "unpacking": SimpleNamespace(unpack=one(Planes.weights)),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, f"mistral_portable_torch.{name}", module)
            patch.setattr(f"mistral_portable_torch.{name}", module, raising=False)
        patch.setattr(matrices, "has_kernels", lambda device: products == "packed")
        patch.setattr(packed, "_COMPILED", Attempt("quantized weights are unpacked for every token, which is slow"))
        if products == "float":
            patch.setattr(matrices, "Dense", Ours)
        patch.setattr(program, "elementwise", lambda kind: Fused(plain))
        backend = PagedBackend(page=256, kernel=Paged(attend, SDPA()))
        session = Session(config, backend, dtype="bfloat16", weights=weights)
        lane, _ = session.begin(text(4))
        kernels.count = 0
        with kernels:
            found = session.feed(lane, [1])
    # bfloat16 rounds to 8 bits, a few times in a layer.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2**-5 * np.abs(expected).max())
    return kernels.count


@pytest.mark.parametrize(("products", "count"), [("torch", 10), ("float", 9), ("packed", 9)])
def test_a_layer_takes_nine_kernels_or_ten(products: str, count: int) -> None:
    """Two of them are attention's, whose parts are merged; before nodes were joined they were 15. Torch's products
    leave SwiGLU to a kernel of its own."""
    few, many = (counted_step(layers, products) for layers in (2, 5))
    assert many - few == 3 * count

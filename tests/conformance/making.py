"""Ways to make a wrong backend: the reference with one mistake in a place that all backends have."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import Program
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.cache import CacheSpec, LayerGroup, Reads, StepPlan
from mistral_portable.graph import Graph, Node
from mistral_portable.graph.adapters import ADAPTERS
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.weights import Tensor

__all__ = [
    "Array",
    "Make",
    "of_class",
    "wrong_adapters",
    "wrong_attributes",
    "wrong_inputs",
    "wrong_outputs",
    "wrong_plan",
    "wrong_reads",
]

Make = Callable[[Graph, Mapping[str, Tensor], CacheSpec], Program]
Array = NDArray[Any]


def wrong_attributes(op: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Make:
    """Mistakes in an op's attributes: `change` maps the right ones to those that are wrong."""

    def make(graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> Program:
        nodes = tuple(
            replace(node, attributes={**node.attributes, **change(dict(node.attributes))}) if node.op == op else node
            for node in graph.nodes
        )
        return ReferenceProgram(replace(graph, nodes=nodes), weights, cache, "float32")

    return make


def wrong_plan(change: Callable[[StepPlan, CacheSpec], StepPlan]) -> Make:
    """Mistakes in reading the plan: `change` maps the right plan to what the backend makes of it."""

    class Misread(ReferenceProgram):
        def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
            return super().step(change(plan, self._cache_spec), inputs)

    return of_class(Misread)


def wrong_inputs(op: str, change: Callable[[list[Any], StepPlan], list[Any]]) -> Make:
    """Mistakes in an op's inputs."""

    class Misled(ReferenceProgram):
        def _run(self, node: Node, inputs: list[Any], plan: StepPlan) -> Array:
            return super()._run(node, change(inputs, plan) if node.op == op else inputs, plan)

    return of_class(Misled)


def wrong_adapters(change: Callable[[Array], Array]) -> Make:
    """Mistakes in the input `adapters`."""

    class Misgiven(ReferenceProgram):
        def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
            return super().step(plan, {**inputs, ADAPTERS: change(inputs[ADAPTERS]).astype(np.float32)})

    return of_class(Misgiven)


def wrong_outputs(change: Callable[[Array], Array]) -> Make:
    """Mistakes in what a step returns."""

    class Miswritten(ReferenceProgram):
        def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
            return {name: change(array) for name, array in super().step(plan, inputs).items()}

    return of_class(Miswritten)


def of_class(kind: type[ReferenceProgram]) -> Make:
    """A reference with methods of its own."""
    return lambda graph, weights, cache: kind(graph, weights, cache, "float32")


def wrong_reads(change: Callable[[Reads, LayerGroup, StepPlan], dict[str, Any]]) -> Make:
    """Mistakes in reading a layer group's part of the plan: `change` gives the fields that are wrong."""

    def misread(plan: StepPlan, spec: CacheSpec) -> StepPlan:
        groups = zip(plan.groups, spec.groups, strict=True)
        return plan._replace(groups=tuple(reads._replace(**change(reads, group, plan)) for reads, group in groups))

    return wrong_plan(misread)

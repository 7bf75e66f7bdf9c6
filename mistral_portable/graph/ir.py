"""The immutable graph: parameters, nodes in execution order, named outputs.

Every value has one name and one producer. A value is an input of the step, a parameter, or the result of a node.
Shapes are tuples of ints and of the symbolic dimensions

    T  tokens of the step, of all its sequences laid end to end (there is no batch axis)
    R  rows that the caller requested (`logit_rows` lists their places on the token axis)
    K  keys that the longest sequence of the step reads
    E  rows that the caller gives in place of others (the pass `accept_embeddings`)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from mistral_portable.graph.rotation import Rotation

__all__ = ["PLAN_INPUTS", "Attribute", "Dim", "Graph", "Node", "Parameter", "Shape"]

Dim = int | str
Shape = tuple[Dim, ...]
Attribute = int | float | Rotation | None

PLAN_INPUTS: Mapping[str, Shape] = MappingProxyType({"tokens": ("T",), "positions": ("T",), "logit_rows": ("R",)})
"""The inputs that come from the StepPlan, int32; every graph has them."""


@dataclass(frozen=True)
class Parameter:
    """A weight. `parts` are the checkpoint tensors that, stacked along axis 0, form it.

    Most have one part, themselves; the matrices of 8 experts, (14336, 4096) each, are the parts of one parameter of
    shape (114688, 4096). Fusing q (64, 8), k (16, 8) and v (16, 8) gives one parameter of shape (96, 8) with three.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The shape of each part, where they are all alike: as long as nothing is fused."""
        return (self.shape[0] // len(self.parts), *self.shape[1:])


@dataclass(frozen=True)
class Node:
    """One operation: `name` = `op`(`inputs`; `attributes`). The name is also the name of its result."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))

    def integer(self, name: str) -> int:
        """An attribute that is an int: `node.integer("head_dim")`."""
        value = self.attributes[name]
        assert isinstance(value, int), f"{self.name}: {name}={value!r}"
        return value

    def number(self, name: str) -> float:
        """An attribute that is a real number: `node.number("eps")`."""
        value = self.attributes[name]
        assert isinstance(value, int | float), f"{self.name}: {name}={value!r}"
        return float(value)

    @property
    def window(self) -> int | None:
        """The attribute `window` of attention."""
        value = self.attributes["window"]
        assert isinstance(value, int | None), f"{self.name}: window={value!r}"
        return value

    @property
    def rotation(self) -> Rotation:
        """The attribute `rotation` of rope."""
        value = self.attributes["rotation"]
        assert isinstance(value, Rotation), f"{self.name}: rotation={value!r}"
        return value


@dataclass(frozen=True)
class Graph:
    """A decoder step. `nodes` are in execution order; `outputs` maps public names to values.

    `inputs` are all that a step is given, by name: PLAN_INPUTS, and what passes add (float32 where a shape has two
    dimensions, else int32).
    `taps` names interior values that a pass may turn into outputs (`expose`): `hidden_states.0` is the
    embedding, `hidden_states.i` the output of layer i, and the last one is taken after the final norm.
    """

    parameters: Mapping[str, Parameter]
    nodes: tuple[Node, ...]
    outputs: Mapping[str, str]
    taps: Mapping[str, str]
    inputs: Mapping[str, Shape] = field(default_factory=lambda: PLAN_INPUTS)

    def __post_init__(self) -> None:
        for name in ("parameters", "outputs", "taps", "inputs"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def rotations(self) -> tuple[Rotation, ...]:
        """The different rotations of its `rope` nodes, in their order."""
        return tuple(dict.fromkeys(node.rotation for node in self.nodes if node.op == "rope"))

    @cached_property  # asked for in every step
    def given(self) -> dict[str, Shape]:
        """The inputs beyond PLAN_INPUTS, which the caller of a step gives."""
        return {name: shape for name, shape in self.inputs.items() if name not in PLAN_INPUTS}

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The checkpoint tensors of an unfused graph, and their shapes."""
        return {part: parameter.part_shape for parameter in self.parameters.values() for part in parameter.parts}

"""Wrong steps: what goes in and comes out, who owns it, threads, and the end."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from conformance.making import (
    Array,
    Make,
    of_class,
    wrong_adapters,
    wrong_inputs,
    wrong_outputs,
)
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from mistral_portable.boundary import Program
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.graph import Graph
from mistral_portable.graph.adapters import is_added
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.weights import QuantTensor, Tensor

__all__ = ["WRONG_STEPS", "hanging"]

Q4_0 = GGMLQuantizationType.Q4_0


def _blocks_of_adapters(graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> Program:
    floats = {name: tensor for name, tensor in weights.items() if is_added(name) and tensor.shape[-1] % 32 == 0}
    packed = {
        name: QuantTensor(name, tensor.shape, Q4_0, quantize(tensor.numpy(), Q4_0)) for name, tensor in floats.items()
    }
    return ReferenceProgram(graph, {**weights, **packed}, cache, "float32")


def _no_places(inputs: list[Any], plan: StepPlan) -> list[Any]:
    x, given, places = inputs
    return [x, given[:0], places[:0]]


class _ReusedBuffer(ReferenceProgram):
    """Returns one buffer at every step, and leaves its last row as it finds it."""

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
        outputs = super().step(plan, inputs)
        self._buffers: dict[str, Array] = getattr(self, "_buffers", {})
        for name, array in outputs.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != array.shape:
                self._buffers[name] = array
            else:
                buffer[:-1] = array[:-1]
        return dict(self._buffers)


class _OneBuffer(ReferenceProgram):
    """Returns one buffer at every step, filled anew."""

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
        self._buffers: dict[tuple[str, tuple[int, ...]], Array] = getattr(self, "_buffers", {})
        outputs = super().step(plan, inputs)
        for name, array in outputs.items():
            buffer = self._buffers.setdefault((name, array.shape), array)
            buffer[...] = array
            outputs[name] = buffer
        return outputs


class _KeptPlan(ReferenceProgram):
    """Counts on from the positions of the last plan, which it keeps. Right for one sequence, if nobody writes there."""

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
        last: StepPlan | None = getattr(self, "_last", None)
        self._last = plan
        if last is None:
            return super().step(plan, inputs)
        counted = last.positions[-1] + 1 + np.arange(len(plan.positions), dtype=np.int32)
        return super().step(plan._replace(positions=counted), inputs)


class _NoLock(ReferenceProgram):
    """Puts the plan of a step where another thread may put its own."""

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
        self._shared = plan
        time.sleep(0.001)
        return super().step(self._shared, inputs)


class _Hanging(ReferenceProgram):
    """Waits for a lock that it holds."""

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
        with self._turn:
            return super().step(plan, inputs)


class _OpenAlways(ReferenceProgram):
    def close(self) -> None:
        pass


class _ClosedOnce(ReferenceProgram):
    """Lets nobody close it again."""

    def close(self) -> None:
        with self._in_turn():
            pass
        super().close()


def _nan_row(array: Array) -> Array:
    array[-1:, 0] = np.nan
    return array


hanging = of_class(_Hanging)
"""Makes programs whose steps do not end."""

WRONG_STEPS: dict[str, tuple[str, Make]] = {
    "NaN in one row": ("one_shot", wrong_outputs(_nan_row)),
    "one column too few": ("one_shot", wrong_outputs(lambda array: array[:, :-1].copy())),
    "rows twice": ("one_shot", wrong_outputs(lambda array: np.concatenate([array, array]))),
    "float64 output": ("one_shot", wrong_outputs(lambda array: array.astype(np.float64))),
    "last row left as it was": ("token_by_token", of_class(_ReusedBuffer)),
    "adapters not read": ("adapters", wrong_adapters(lambda weights: np.zeros_like(weights))),
    "adapters of the step's first token": (
        "adapters",
        wrong_adapters(lambda weights: np.tile(weights[:1], (len(weights), 1))),
    ),
    "adapters in blocks as the weights": ("adapters.q4_0", _blocks_of_adapters),
    "inputs_embeds not read": ("inputs_embeds", wrong_inputs("replace_rows", _no_places)),
    "steps after it is closed": ("closed", of_class(_OpenAlways)),
    "closes once only": ("closed", of_class(_ClosedOnce)),
    "threads share a plan": ("threads", of_class(_NoLock)),
    "one buffer for the outputs of all steps": ("own_outputs", of_class(_OneBuffer)),
    "the plan is kept": ("own_outputs", of_class(_KeptPlan)),
}
"""Name -> the rung of the ladder that must catch it, and how it is made."""

"""Whole models: logits near those of unpacked weights, and the reference's tokens."""

from collections.abc import Mapping

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from mistral_portable_numba import BACKEND
from numba_linear import KINDS
from weights.files import random_tensors, small_config

import mistral_portable as mp
from mistral_portable.boundary import ExecutorOptions, Program, prepare
from mistral_portable.cache import CacheSpec
from mistral_portable.graph import build
from mistral_portable.graph.passes import select_rows
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.testing import Case, Feed, Scenario, nmse, run
from mistral_portable.testing.scenario import Outputs
from mistral_portable.weights import DenseTensor, QuantTensor, Tensor

CONFIG = small_config(vocab_size=300, hidden_size=256, intermediate_size=512, head_dim=64, sliding_window=24)
TOKENS = tuple(np.random.default_rng(0).integers(0, 300, 100).tolist())
SCENARIO = Scenario(
    (
        (Feed(0, TOKENS[:40], 40), Feed(1, TOKENS[:7], 7)),
        (Feed(0, TOKENS[40:41], 1), Feed(1, TOKENS[7:10], 3)),
        (Feed(0, TOKENS[41:42], 1),),
        (Feed(1, TOKENS[10:50], 40),),
    )
)


def weights_of(kind: str) -> Mapping[str, Tensor]:
    """Random weights for CONFIG: matrices in blocks, or of a float type."""
    quantization = kind.upper() if kind in KINDS else None
    weights: dict[str, Tensor] = {}
    for name, array in random_tensors(CONFIG, np.random.default_rng(1), quantization).items():
        if array.dtype == np.uint8:
            shape = build(CONFIG).parameters[name].shape
            weights[name] = QuantTensor(name, shape, GGMLQuantizationType[kind.upper()], array)
        else:
            weights[name] = DenseTensor(name, "float32", array)
    return weights


def case(kind: str) -> Case:
    return Case(kind, CONFIG, select_rows(build(CONFIG), "logits"), weights_of(kind), SCENARIO)


def spec_of(case: Case) -> CacheSpec:
    scenario = case.scenario
    sizes = {"max_context": scenario.max_context, "max_chunk": scenario.max_chunk, "max_lanes": scenario.max_lanes}
    return CacheSpec.from_config(case.config, page_size=BACKEND.capabilities.page_size, **sizes)


def outputs(case: Case, program: Program) -> dict[int, Outputs]:
    found = run(program, case.graph, spec_of(case), case.scenario)
    program.close()
    return found


def numba_outputs(case: Case, options: ExecutorOptions) -> dict[int, Outputs]:
    return outputs(case, prepare(BACKEND, case.graph, case.weights, spec_of(case), options))


@pytest.mark.parametrize("kind", KINDS)
def test_int8_logits_are_near_those_of_unpacked_weights(kind: str) -> None:
    model = case(kind)
    ref = outputs(model, ReferenceProgram(model.graph, model.weights, spec_of(model), "float32"))
    found = numba_outputs(model, ExecutorOptions(dtype="int8"))
    for sequence in SCENARIO.texts:
        assert nmse(found[sequence]["logits"], ref[sequence]["logits"]) <= 1e-3


@pytest.mark.parametrize("quantize", [None, "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_tiny_logits(quantize: str | None) -> None:
    """Logits of a trained model on a text of three windows."""
    found, ref = (mp.load("tiny", backend=backend, quantize=quantize) for backend in ("numba", "reference"))
    tokens = found.generate("Once upon a time", max_tokens=200, temperature=0).tokens
    assert nmse(found.logits([tokens])[0], ref.logits([tokens])[0]) <= 1e-3


@pytest.mark.parametrize("kv_cache", ["float32", "float16"])
def test_tiny_writes_the_reference_s_story(kv_cache: str) -> None:
    found, ref = (
        mp.load("tiny", backend="numba", kv_cache=kv_cache),
        mp.load("tiny", backend="reference"),
    )
    story, expected = (model.generate("Once upon a time", max_tokens=200, temperature=0) for model in (found, ref))
    assert len(expected.tokens) > 2 * 64
    assert story.tokens == expected.tokens

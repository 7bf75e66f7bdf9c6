"""Every family at a small size: what transformers saves of its class, loaded here, gives its logits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_models import hf_model

from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.boundary.binding import check_tensors
from mistral_portable.cache import CacheSpec
from mistral_portable.graph import build
from mistral_portable.reference import BACKEND
from mistral_portable.testing.families import FAMILIES, shrunk
from mistral_portable.testing.scenario import one_shot, run
from mistral_portable.weights import open_checkpoint

TEXT = tuple(np.random.default_rng(0).integers(0, 64, 40).tolist())  # four windows, five original lengths


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_family_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    config = shrunk(FAMILIES[name])
    model = hf_model(config, seed=1)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(torch.tensor([TEXT]), use_cache=False).logits[0].numpy()
    opened = open_checkpoint(tmp_path)
    assert replace(opened.config, extra={}) == config
    graph = build(opened.config)
    check_tensors(graph, opened.tensors, name)
    spec = CacheSpec.from_config(opened.config, max_context=len(TEXT), page_size=16, max_chunk=len(TEXT))
    program = prepare(BACKEND, graph, opened.tensors, spec, ExecutorOptions(dtype="float32"))
    out = run(program, graph, spec, one_shot(TEXT))[0]["logits"]
    assert np.abs(out - expected).max() <= 1e-4 * np.abs(expected).max()

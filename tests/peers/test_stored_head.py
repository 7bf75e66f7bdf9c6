"""A head stored beside tied embeddings: transformers' rule, and its logits."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from weights.files import random_tensors, small_config, write_hf, write_raw

import mistral_portable as mp
from mistral_portable import transformers as ours
from mistral_portable.weights import open_checkpoint

CONFIG = small_config(tie_word_embeddings=True)
TENSORS = random_tensors(small_config(), np.random.default_rng(0))
TABLE, HEAD = TENSORS["model.embed_tokens.weight"], TENSORS["lm_head.weight"]
IDS = [1, 5, 7, 2, 90]


def stored(head: str) -> dict[str, NDArray[np.float32]]:
    """The tensors of a checkpoint whose head is another one than its table, the same one, or the only one."""
    tensors = dict(TENSORS)
    if head == "same":
        tensors["lm_head.weight"] = TABLE
    if head == "alone":
        del tensors["model.embed_tokens.weight"]
    return tensors


@pytest.mark.parametrize(("head", "warned"), [("other", True), ("same", False), ("alone", False)])
def test_logits_are_those_of_transformers(tmp_path: Path, head: str, warned: bool) -> None:
    write_hf(tmp_path, CONFIG, stored(head))
    theirs = transformers.MistralForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        wanted = theirs(torch.tensor([IDS])).logits[0].numpy()
    checkpoint = open_checkpoint(tmp_path)
    assert any("tie_word_embeddings" in notice for notice in checkpoint.notices) == warned
    assert checkpoint.config.tie_word_embeddings != warned
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = mp.load(tmp_path, backend="reference")
    assert len(seen) == warned
    np.testing.assert_allclose(model.logits(IDS), wanted, rtol=1e-4, atol=1e-4)


def test_one_row_decides(tmp_path: Path) -> None:
    tensors = dict(TENSORS)
    tensors["lm_head.weight"] = TABLE.copy()
    tensors["lm_head.weight"][-1, -1] += 1
    write_hf(tmp_path, CONFIG, tensors)
    assert not open_checkpoint(tmp_path).config.tie_word_embeddings


def test_mistrals_own_files_keep_the_same_rule(tmp_path: Path) -> None:
    write_raw(tmp_path, CONFIG, TENSORS)
    params = json.loads((tmp_path / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps({**params, "tied_embeddings": True}))
    checkpoint = open_checkpoint(tmp_path)
    assert not checkpoint.config.tie_word_embeddings
    np.testing.assert_array_equal(checkpoint.tensors["lm_head.weight"].numpy(), HEAD)
    assert "tie_word_embeddings" in checkpoint.notices[0]


def test_what_is_converted_has_the_head(tmp_path: Path) -> None:
    write_hf(tmp_path / "source", CONFIG, TENSORS)
    for format in ("hf", "gguf", "raw"):
        target = tmp_path / f"made.{format}"
        mp.convert(tmp_path / "source", target, format)
        again = open_checkpoint(target)
        assert not again.config.tie_word_embeddings
        np.testing.assert_array_equal(again.tensors["lm_head.weight"].numpy(), HEAD)


def test_a_config_of_the_call_is_corrected_too(tmp_path: Path) -> None:
    write_hf(tmp_path, small_config(), TENSORS)
    theirs = transformers.MistralForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=True)
    with pytest.warns(UserWarning, match="an lm_head.weight with other values"):
        mine = ours.MistralForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=True, backend="reference")
    with torch.no_grad():
        wanted = theirs(torch.tensor([IDS])).logits.numpy()
    np.testing.assert_allclose(mine([IDS]).logits, wanted, rtol=1e-4, atol=1e-4)

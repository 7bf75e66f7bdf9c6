"""Fingerprints: equal for equal weights however they are held, different where a number differs."""

from dataclasses import replace

import numpy as np
import pytest
from weights.files import small_config

from mistral_portable.graph import build
from mistral_portable.testing import random_weights
from mistral_portable.weights import DenseTensor, Tensor, fingerprint

CONFIG = small_config()


def weights(seed: int = 0, quantization: str | None = None) -> dict[str, Tensor]:
    return dict(random_weights(build(CONFIG), seed, quantization))


@pytest.mark.parametrize("quantization", [None, "q4_0"])
def test_other_weights_have_another_fingerprint(quantization: str | None) -> None:
    one = fingerprint(CONFIG, weights(0, quantization))
    assert one == fingerprint(CONFIG, weights(0, quantization))
    assert len({one, fingerprint(CONFIG, weights(1, quantization)), fingerprint(CONFIG.with_window(2), weights())}) == 3


def test_one_tensor_suffices() -> None:
    changed = weights()
    name = list(changed)[3]
    changed[name] = weights(1)[name]
    assert fingerprint(CONFIG, changed) != fingerprint(CONFIG, weights())


def test_strides_do_not_matter_and_types_do() -> None:
    tensors = weights()
    name = next(name for name, tensor in tensors.items() if len(tensor.shape) == 2)
    values = tensors[name].numpy(np.float32)
    held = {
        kind: fingerprint(CONFIG, tensors | {name: DenseTensor(name, dtype, array)})
        for kind, dtype, array in (
            ("rows", "float32", values),
            ("columns", "float32", np.asfortranarray(values)),
            ("halves", "float16", values.astype(np.float16)),
        )
    }
    assert held["rows"] == held["columns"] != held["halves"]
    assert replace(CONFIG, rope_theta=5.0) != CONFIG
    assert fingerprint(replace(CONFIG, rope_theta=5.0), tensors) != held["rows"]


def test_keys_that_change_no_key_or_value_do_not_count() -> None:
    others = [
        replace(CONFIG, extra={**CONFIG.extra, "torch_dtype": "float16"}),
        replace(CONFIG, max_position_embeddings=2 * CONFIG.max_position_embeddings),
        replace(CONFIG, eos_token_id=3),
    ]
    assert {fingerprint(config, weights()) for config in (CONFIG, *others)} == {fingerprint(CONFIG, weights())}

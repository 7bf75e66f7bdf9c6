"""The Flax examples of the pages, on the embedded model; and the tokenizer's arrays for them.

The pages have no examples of the TensorFlow classes, only their names: tests/documented/test_tf.py.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mistral_portable.transformers import (
    AutoTokenizer,
    BatchEncoding,
    FlaxMistralForCausalLM,
    FlaxMistralModel,
    MistralForCausalLM,
)


def test_flax_mistral_model() -> None:
    """ "FlaxMistralModel", with the same weights under another name."""
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    model = FlaxMistralModel.from_pretrained("tiny")

    inputs = tokenizer("Hello, my dog is cute", return_tensors="jax")
    outputs = model(**inputs)

    last_hidden_states = outputs.last_hidden_state
    assert isinstance(last_hidden_states, jax.Array)
    assert last_hidden_states.shape == (*inputs.input_ids.shape, model.config.hidden_size)


def test_flax_mistral_for_causal_lm() -> None:
    """ "FlaxMistralForCausalLM"."""
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    model = FlaxMistralForCausalLM.from_pretrained("tiny")

    inputs = tokenizer("Hello, my dog is cute", return_tensors="np")
    outputs = model(**inputs)

    # retrieve logts for next token
    next_token_logits = outputs.logits[:, -1]
    expected = MistralForCausalLM.from_pretrained("tiny", backend="reference")(**inputs).logits[:, -1]
    np.testing.assert_allclose(next_token_logits, expected, rtol=1e-4, atol=1e-4)


def test_return_tensors_jax() -> None:
    """Arrays are int32, as JAX's integers are; padding keeps them arrays, and other methods take them like lists."""
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    inputs = tokenizer(["Hello", "Once upon a time"], padding=True, return_tensors="jax")
    assert inputs.input_ids.dtype == inputs.attention_mask.dtype == jnp.int32
    assert inputs.attention_mask.sum(axis=1).tolist() == [2, 5]
    padded = tokenizer.pad({"input_ids": [jnp.array([1, 2]), jnp.array([3])]})
    assert isinstance(padded.input_ids, jax.Array)
    assert padded.attention_mask.tolist() == [[1, 1], [0, 1]]
    assert tokenizer.decode(inputs.input_ids[1], skip_special_tokens=True) == "Once upon a time"
    assert isinstance(BatchEncoding({"input_ids": [[1]]}).convert_to_tensors("jax").input_ids, jax.Array)
    assert inputs.to("cpu") is inputs

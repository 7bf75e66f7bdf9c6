"""The TensorFlow classes, with every way to pass inputs, give the outputs of the classes without TF."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mistral_portable import transformers as ours

VALUES: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "sliding_window": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
IDS = np.array([[0, 0, 7, 8, 9, 3, 4], [5, 6, 7, 8, 1, 2, 3]])
MASK = np.minimum(IDS, 1)

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="TensorFlow is not installed: its 600 MB are too much for the extra [test]",
)


def models(name: str, folder: Path) -> tuple[Any, Any]:
    """The class without TF and the one with it, on the same weights."""
    plain = getattr(ours, name)(ours.MistralConfig(**VALUES), backend="reference")
    plain.save_pretrained(folder)
    return plain, getattr(ours, f"TF{name}").from_pretrained(folder, from_pt=True, backend="reference")


def test_without_tensorflow_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from mistral_portable.transformers import AutoTokenizer, MistralConfig, TFMistralModel\n"
        "for call in (lambda: TFMistralModel(MistralConfig()), "
        "lambda: AutoTokenizer.from_pretrained('tiny')('a', return_tensors='tf')):\n"
        "    try: call()\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = result.stdout.splitlines()
    assert re.fullmatch(r"BackendError TensorFlow cannot be imported .*: pip install .*\[tf\]'", first)
    assert second == 'ImportError return_tensors="tf" needs tensorflow; install mistral-portable[tf]'


@needs_tensorflow
@pytest.mark.parametrize("name", ["MistralModel", "MistralForCausalLM", "MistralForSequenceClassification"])
def test_inputs_in_every_form_give_tensors(name: str, tmp_path: Path) -> None:
    import tensorflow as tf

    plain, model = models(name, tmp_path)
    expected = plain(IDS, MASK, output_hidden_states=True)
    ids, mask = tf.constant(IDS), tf.constant(MASK)
    calls: list[Callable[..., Any]] = [
        lambda **more: model(ids, mask, **more),
        lambda **more: model(ids, attention_mask=mask, training=True, **more),
        lambda **more: model(input_ids=ids, attention_mask=mask, **more),
        lambda **more: model([ids, mask], **more),
        lambda **more: model({"input_ids": ids, "attention_mask": mask}, **more),
        lambda **more: model(ours.BatchEncoding({"input_ids": ids, "attention_mask": mask}), **more),
        lambda **more: model.call(IDS.tolist(), MASK, **more),
    ]
    for call in calls:
        got = call(output_hidden_states=True)
        assert list(got.keys()) == list(expected.keys())
        assert isinstance(got[0], tf.Tensor)
        np.testing.assert_array_equal(got[0].numpy(), expected[0])
        for mine, other in zip(got.hidden_states, expected.hidden_states, strict=True):
            np.testing.assert_array_equal(mine.numpy(), other)


@needs_tensorflow
def test_labels_caches_embeddings_and_generate(tmp_path: Path) -> None:
    import tensorflow as tf

    plain, model = models("MistralForCausalLM", tmp_path)
    ids, mask = tf.constant(IDS), tf.constant(MASK)
    loss = model(ids, mask, labels=tf.constant(np.where(MASK == 1, IDS, -100))).loss
    assert float(loss) == float(plain(IDS, MASK, labels=np.where(MASK == 1, IDS, -100)).loss)
    first = model(ids[:, :5], mask[:, :5], use_cache=True)
    second = model(ids[:, 5:], mask, past_key_values=first.past_key_values, return_dict=False)
    np.testing.assert_allclose(second[0], plain(IDS, MASK).logits[:, 5:], atol=1e-5)
    embeds = model.get_input_embeddings()(ids)
    assert isinstance(embeds, tf.Tensor)
    np.testing.assert_allclose(model({"inputs_embeds": embeds, "attention_mask": mask}).logits, plain(IDS, MASK).logits)
    made = model.generate(IDS, attention_mask=mask, max_new_tokens=4)
    assert isinstance(made, tf.Tensor)
    np.testing.assert_array_equal(made, plain.generate(IDS, attention_mask=MASK, max_new_tokens=4))
    model.save_pretrained(tmp_path)
    assert '"MistralForCausalLM"' in (tmp_path / "config.json").read_text()


@needs_tensorflow
def test_tokenizers_give_its_tensors() -> None:
    import tensorflow as tf

    tokenizer = ours.AutoTokenizer.from_pretrained("tiny")
    inputs = tokenizer(["Hello", "Once upon a time"], padding=True, return_tensors="tf")
    assert inputs.input_ids.dtype == tf.int32
    again = tokenizer.pad({"input_ids": [tf.constant([1, 2]), tf.constant([3])]})
    assert isinstance(again.input_ids, tf.Tensor)
    assert again.attention_mask.numpy().tolist() == [[1, 1], [0, 1]]
    assert tokenizer.decode(inputs.input_ids[1], skip_special_tokens=True) == "Once upon a time"


@needs_tensorflow
def test_what_it_cannot_do_is_said_in_one_line(tmp_path: Path) -> None:
    import tensorflow as tf

    _, model = models("MistralForCausalLM", tmp_path)
    with pytest.raises(Exception, match="call it outside of tf"):
        tf.function(model, autograph=False)(tf.constant(IDS))
    with pytest.raises(ValueError, match="pass what comes with it by name"):
        model({"input_ids": IDS}, MASK)
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        model({})
    with pytest.raises(ValueError, match="there is no dropout"):
        ours.TFMistralModel(ours.MistralConfig(**VALUES, attention_dropout=0.1))(IDS, training=True)

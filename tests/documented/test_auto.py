"""AutoConfig, from_config and set_seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from documented_models import VALUES

from mistral_portable import transformers as ours

SMALL: dict[str, Any] = {**VALUES, "num_hidden_layers": 1}
IDS = np.array([[3, 5, 7, 2]])


def test_auto_config(tmp_path: Path) -> None:
    transformers.MistralConfig(**VALUES).save_pretrained(tmp_path)
    assert ours.AutoConfig.from_pretrained(tmp_path) == ours.MistralConfig.from_pretrained(tmp_path)
    changed = ours.AutoConfig.from_pretrained(tmp_path, num_labels=5)
    assert (changed.num_labels, changed.hidden_size) == (5, VALUES["hidden_size"])
    for kind in ("mistral", "mixtral", "ministral3"):
        mine, theirs = ours.AutoConfig.for_model(kind), transformers.AutoConfig.for_model(kind)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "sliding_window", "rms_norm_eps"):
            assert getattr(mine, name) == getattr(theirs, name), (kind, name)
    with pytest.raises(ValueError, match="model_type='gpt2': there are mistral"):
        ours.AutoConfig.for_model("gpt2")
    with pytest.raises(OSError, match="from_pretrained"):
        ours.AutoConfig()


@pytest.mark.parametrize(
    "name",
    ["AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"],
)
def test_models_of_a_config(name: str) -> None:
    config = ours.MistralConfig(**SMALL)
    auto: Any = getattr(ours, name)
    made = auto.from_config(config, backend="reference", torch_dtype="float32")
    shapes = {key: tensor.shape for key, tensor in made.tensors.items()}
    theirs: Any = getattr(transformers, name).from_config(transformers.MistralConfig(**SMALL))
    known = {key if key.startswith(("model.", "lm_head", "score")) else f"model.{key}" for key in theirs.state_dict()}
    assert {*shapes} == known
    assert np.isfinite(np.asarray(made(IDS)[0])).all()
    with pytest.raises(ValueError, match="from_config has no argument frob"):
        auto.from_config(config, frob=1)
    with pytest.raises(ValueError, match="config is a str: pass a MistralConfig"):
        auto.from_config("tiny")


def test_set_seed_repeats_what_is_drawn() -> None:
    config = ours.MistralConfig(**SMALL)

    def drawn() -> tuple[Any, ...]:
        model = ours.AutoModelForCausalLM.from_config(config, backend="reference")
        texts = [model.generate(IDS, do_sample=True, max_new_tokens=8).tolist() for _ in range(2)]
        return model.tensors["model.norm.weight"].shape, *texts, model.generate(IDS, max_new_tokens=4).tolist()

    ours.set_seed(7)
    first = drawn()
    assert first[1] != first[2]  # one call does not repeat the other
    ours.set_seed(7)
    assert drawn() == first
    ours.set_seed(8)
    assert drawn() != first
    for wrong in (-1, 2**32, True, 1.5, None):
        with pytest.raises(ValueError, match="must be an integer from 0 to 4294967295"):
            ours.set_seed(wrong)  # type: ignore[arg-type]  # that is the mistake

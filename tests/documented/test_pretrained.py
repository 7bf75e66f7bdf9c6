"""from_pretrained and save_pretrained exchange models with transformers; names of options."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from documented_models import HEADS, VALUES, pair

import mistral_portable as mp
from mistral_portable import transformers as ours
from mistral_portable.errors import BackendError, CheckpointError, MistralPortableError

IDS = np.arange(1, 13).reshape(2, 6)


@pytest.mark.parametrize("name", HEADS)
def test_what_is_saved_here_is_read_there(name: str, tmp_path: Path) -> None:
    mine, _ = pair(name, VALUES, 0)
    mine.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architectures"] == [name]
    theirs, info = getattr(transformers, name).from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert theirs.config.num_labels == 3
    again = getattr(ours, name).from_pretrained(tmp_path / "model", backend="reference")
    assert again.config == ours.MistralConfig.from_dict(
        mine.config.to_dict() | {"dtype": "float32", "architectures": [name]}
    )
    with torch.no_grad():
        wanted = theirs(torch.tensor(IDS))[0].numpy()
    for model in (mine, again):
        np.testing.assert_allclose(model(IDS, return_dict=False)[0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_what_is_saved_there_is_read_here(name: str, tmp_path: Path) -> None:
    _, theirs = pair(name, VALUES, 0)
    theirs.save_pretrained(tmp_path)
    mine = getattr(ours, name).from_pretrained(tmp_path, backend="reference")
    with torch.no_grad():
        wanted = theirs(torch.tensor(IDS))[0].numpy()
    np.testing.assert_allclose(mine(IDS, return_dict=False)[0], wanted, rtol=1e-4, atol=1e-4)


def test_a_model_is_saved_over_the_files_that_it_is_read_from(tmp_path: Path) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    mine.save_pretrained(tmp_path)
    again = ours.MistralForCausalLM.from_pretrained(tmp_path, backend="reference")
    again.save_pretrained(tmp_path)
    np.testing.assert_array_equal(again(IDS).logits, mine(IDS).logits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_random_weights_of_a_config() -> None:
    configuration = ours.MistralConfig(**{**VALUES, "num_hidden_layers": 1})
    model = ours.MistralModel(configuration, backend="reference")
    assert model.config.hidden_size == 12
    assert model([[1, 2]]).last_hidden_state.shape == (1, 2, 12)


def test_configs_keep_what_they_do_not_know(tmp_path: Path) -> None:
    config = ours.MistralConfig(note="mine", num_labels=5, sliding_window=None)
    assert config.num_key_value_heads == 8
    assert (config.hidden_size, config.head_dim, config.vocab_size, config.rms_norm_eps) == (4096, 128, 32000, 1e-6)
    config.save_pretrained(tmp_path)
    again = ours.MistralConfig.from_dict(json.loads((tmp_path / "config.json").read_text()))
    assert (again.note, again.num_labels, again.sliding_window) == ("mine", 5, None)
    assert again == config
    with pytest.raises(AttributeError, match="has no 'frob'"):
        _ = config.frob
    with pytest.raises(ValueError, match="num_key_value_heads=3 must divide"):
        ours.MistralConfig(num_key_value_heads=3)


LABELS: list[dict[str, Any]] = [
    {},
    {"num_labels": 3},
    {"num_labels": 1},
    {"id2label": {"0": "no", "1": "yes"}},
    {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}},
    {"id2label": {0: "a", 1: "b", 2: "c"}, "num_labels": 5},
    {"id2label": {0: "a", 1: "b", 2: "c"}, "num_labels": 3},
    {"id2label": None},
]


@pytest.mark.parametrize("given", LABELS)
def test_labels_are_named_as_in_transformers(given: dict[str, Any], tmp_path: Path) -> None:
    def labels(config: Any) -> Any:
        return config.num_labels, config.id2label, config.label2id

    values = {name: value for name, value in VALUES.items() if name != "num_labels"} | given
    mine, theirs = ours.MistralConfig(**values), transformers.MistralConfig(**values)
    assert labels(mine) == labels(theirs)
    mine.save_pretrained(tmp_path / "mine")
    theirs.save_pretrained(tmp_path / "theirs")
    assert labels(ours.MistralConfig.from_pretrained(tmp_path / "theirs")) == labels(theirs)
    assert labels(transformers.MistralConfig.from_pretrained(tmp_path / "mine")) == labels(mine)
    assert ours.MistralConfig.from_pretrained(tmp_path / "mine") == mine
    mine.num_labels = theirs.num_labels = 4
    assert labels(mine) == labels(theirs)


def test_labels_of_a_model(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "id2label": {0: "no", 1: "yes", 2: "perhaps"},
        "label2id": {"no": 0, "yes": 1, "perhaps": 2},
    }
    values = {name: value for name, value in VALUES.items() if name != "num_labels"}
    saved = transformers.MistralForSequenceClassification(transformers.MistralConfig(**values | given))
    saved.save_pretrained(tmp_path)
    model = ours.AutoModelForSequenceClassification.from_pretrained(tmp_path, backend="reference")
    found = int(model(IDS[:1]).logits.argmax())
    assert model.config.id2label[found] in given["label2id"]
    assert model.config.label2id == given["label2id"]
    with pytest.raises(CheckpointError, match=r"score\.weight has the shape \(3, 12\) and needs \(4, 12\)"):
        ours.MistralForSequenceClassification.from_pretrained(tmp_path, backend="reference", num_labels=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_labels": 2**40}, "num_labels=1099511627776 must be an integer from 0 to 1048576"),
        ({"num_labels": -1}, "num_labels=-1 must be"),
        ({"num_labels": "3"}, "num_labels='3' must be"),
        ({"num_labels": True}, "num_labels=True must be"),
        ({"id2label": ["a", "b"]}, "id2label=.* must be an object with integers as keys"),
        ({"id2label": {"zero": "a"}}, "id2label=.* must be an object with integers as keys"),
    ],
)
def test_impossible_labels(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours.MistralConfig(**given)


def test_a_config_alone_is_saved_and_read(tmp_path: Path) -> None:
    config = ours.MistralConfig(**VALUES, note="mine")
    config.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    for path in (tmp_path, str(tmp_path), tmp_path / "config.json"):
        assert ours.MistralConfig.from_pretrained(path) == config
    changed = ours.MistralConfig.from_pretrained(tmp_path, sliding_window=None, note="yours")
    assert (changed.sliding_window, changed.note) == (None, "yours")
    theirs = transformers.MistralConfig.from_pretrained(tmp_path)
    assert {name: getattr(theirs, name) for name in VALUES if name != "rope_theta"} == {
        name: VALUES[name] for name in VALUES if name != "rope_theta"
    }
    theirs.save_pretrained(tmp_path / "theirs")
    again = ours.MistralConfig.from_pretrained(tmp_path / "theirs")
    assert again.native() == ours.MistralConfig.from_dict(again.to_dict()).native()
    assert {name: getattr(again, name) for name in VALUES} == VALUES


def test_configs_of_other_formats_are_read_too(tmp_path: Path) -> None:
    model = ours.MistralForCausalLM(ours.MistralConfig(**VALUES), backend="reference")
    model.save_pretrained(tmp_path / "hf")
    sizes = [name for name in VALUES if name not in ("num_labels", "pad_token_id", "initializer_range")]
    for format in ("raw", "gguf"):
        mp.convert(tmp_path / "hf", tmp_path / format, format)
        config = ours.MistralConfig.from_pretrained(tmp_path / format)
        given = {name: VALUES[name] for name in sizes if name != "max_position_embeddings"}
        assert {name: getattr(config, name) for name in given} == given
    (tmp_path / "raw" / "consolidated.safetensors").unlink()
    assert ours.MistralConfig.from_pretrained(tmp_path / "raw").hidden_size == VALUES["hidden_size"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "holds no "),
        ("gone/config.json", r"gone/config\.json: not a file"),
        ("other", "model_type='llama' is not supported"),
        ("broken", "not valid JSON"),
        ("no-such-name", "no such file or folder, and no name on the Hugging Face hub"),
    ],
)
def test_what_holds_no_config(name: str, message: str, tmp_path: Path) -> None:
    for folder, content in {"nothing": None, "other": '{"model_type": "llama"}', "broken": "{"}.items():
        (tmp_path / folder).mkdir()
        if content is not None:
            (tmp_path / folder / "config.json").write_text(content)
    with pytest.raises(MistralPortableError, match=message):
        ours.MistralConfig.from_pretrained(name if name == "no-such-name" else tmp_path / name)


@pytest.mark.parametrize("dtype", ["float16", "torch.float16", torch.float16, np.float16])
def test_dtypes_have_many_names(dtype: Any) -> None:
    model = ours.AutoModelForCausalLM.from_pretrained("tiny", backend="torch", torch_dtype=dtype, device_map="cpu")
    assert model.decoder.program.precision.dtype == "float16"
    with pytest.warns(UserWarning, match="computes in float32, which is finer than float16"):
        ours.AutoModelForCausalLM.from_pretrained("tiny", backend="numba", torch_dtype=dtype)


@pytest.mark.parametrize(("backend", "type"), [("numba", "q4_0"), ("reference", "q4_0"), ("torch", "nf4")])
def test_four_bits(backend: str, type: str) -> None:
    config = ours.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="torch.float32"
    )
    call: dict[str, Any] = {"backend": backend, "quantization_config": config, "device_map": "auto"}
    if backend == "torch":
        pytest.importorskip("bitsandbytes")
        model = ours.AutoModelForCausalLM.from_pretrained("tiny", **call)
    else:
        with pytest.warns(UserWarning, match=f"backend '{backend}' has ggml's {type} for bitsandbytes' nf4"):
            model = ours.AutoModelForCausalLM.from_pretrained("tiny", **call)
    plain = ours.AutoModelForCausalLM.from_pretrained("tiny", backend="reference")
    ids = [[1, 40, 50, 60]]
    error = np.abs(model(ids).logits - plain(ids).logits).mean() / np.abs(plain(ids).logits).mean()
    assert 0.001 < error < 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantization_config": True}, "quantization_config=True: pass the BitsAndBytesConfig itself"),
        ({"quantization_config": {"frob": 1}}, "quantization_config: .*'frob'"),
        (
            {"quantization_config": {"load_in_4bit": True, "load_in_8bit": True}},
            "only one can be used at the same time",
        ),
        ({"quantization_config": {"bnb_4bit_quant_type": "nf5"}}, "bnb_4bit_quant_type='nf5': choose 'fp4' or 'nf4'"),
        ({"torch_dtype": "int3"}, "dtype='int3': choose 'auto'"),
        ({"device_map": {"a": 0, "b": 1}}, "pass 'auto' or one device"),
        ({"device_map": 0, "backend": "reference"}, "pass backend='torch'"),
        ({"frob": 1}, "frob=1: no argument, and no field of the config"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours.AutoModelForCausalLM.from_pretrained("tiny", **{"backend": "reference", **arguments})


def test_a_model_moves_as_it_is_loaded() -> None:
    model = ours.MistralModel.from_pretrained("tiny", backend="reference")
    assert model.to("cpu") is model
    with pytest.raises(ValueError, match="the model is on cpu: to have it on cuda:0, load it with device_map='cuda:0'"):
        model.to("cuda:0")
    with pytest.raises(ValueError, match="the model is on cpu: to have it on cuda:1, load it with"):
        model.to(1)
    with pytest.raises(ValueError, match=r"torch\.float16 is no device; a dtype is chosen as the model is loaded"):
        model.to(torch.float16)


def test_the_package_imports_no_framework() -> None:
    import subprocess
    import sys

    code = (
        "import sys, mistral_portable.transformers; "
        "print(sorted({'torch', 'transformers', 'jax', 'mlx', 'numba', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_attention_by_their_names() -> None:
    call: dict[str, Any] = {"backend": "torch", "device_map": "cpu", "dtype": "float32"}
    for name in ("sdpa", "eager", "flex_attention"):
        found = ours.MistralModel.from_pretrained("tiny", attn_implementation=name, **call)([[1, 2, 3]])
        assert found.last_hidden_state.shape == (1, 3, found.last_hidden_state.shape[-1])
    with pytest.raises(BackendError, match="attention='flash_attn': it needs a CUDA GPU"):
        ours.MistralModel.from_pretrained("tiny", attn_implementation="flash_attention_2", **call)
    with pytest.warns(UserWarning, match="has an attention of its own, not sdpa"):
        ours.MistralModel.from_pretrained("tiny", backend="reference", attn_implementation="sdpa")


@pytest.mark.parametrize("family", ["ministral3", "mixtral"])
def test_other_families(family: str, tmp_path: Path) -> None:
    """The one class also runs Ministral 3's rotations and Mixtral's experts, by their configs."""
    values: dict[str, Any] = {**VALUES, "sliding_window": None}
    if family == "mixtral":
        values |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    else:
        rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 4}
        values |= {"rope_parameters": rope | {"llama_4_scaling_beta": 0.1, "attention_factor": 1.0}}
    model = ours.MistralForCausalLM(ours.MistralConfig(**values), backend="reference")
    model.save_pretrained(tmp_path)
    again = ours.MistralForCausalLM.from_pretrained(tmp_path, backend="reference")
    np.testing.assert_array_equal(again(IDS).logits, model(IDS).logits)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    theirs, info = loaded
    assert not info["missing_keys"]
    with torch.no_grad():
        np.testing.assert_allclose(model(IDS).logits, theirs(torch.tensor(IDS)).logits, rtol=1e-4, atol=1e-4)
    native = mp.load(tmp_path, backend="reference")
    np.testing.assert_allclose(native.logits(IDS[0].tolist()), model(IDS).logits[0], rtol=1e-5, atol=1e-5)


def test_windows_that_differ_are_not_saved(tmp_path: Path) -> None:
    model = ours.MistralModel(ours.MistralConfig(**{**VALUES, "sliding_window": (None, 4)}), backend="reference")
    with pytest.raises(ValueError, match=r"sliding_window=\(None, 4\): layers differ"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_index_of_before_does_not_stay(tmp_path: Path) -> None:
    first, _ = pair("MistralForCausalLM", VALUES, 0)
    _, theirs = pair("MistralForCausalLM", VALUES, 1)
    theirs.save_pretrained(tmp_path, max_shard_size="2KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    first.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("model*")) == ["model.safetensors"]
    again = ours.MistralForCausalLM.from_pretrained(tmp_path, backend="reference")
    np.testing.assert_array_equal(again(IDS).logits, first(IDS).logits)


def test_configs_are_checked_and_written() -> None:
    with pytest.raises(ValueError, match="to_dict: a field cannot have the name of a method"):
        ours.MistralConfig(to_dict=1)
    assert '"torch_dtype": "float16"' in ours.MistralConfig(torch_dtype=torch.float16).to_json_string()
    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16}
    config = ours.MistralConfig(rope_parameters=yarn)
    assert config.rope_theta == config.native().rope_theta == 1e6
    config.rope_theta = 5e5
    assert config.native().rope_theta == 5e5
    with pytest.raises(ValueError, match="config= is a MistralConfig, and has all fields"):
        ours.MistralModel.from_pretrained("tiny", config=config, sliding_window=3)

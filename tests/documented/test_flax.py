"""The Flax classes against transformers' torch models: outputs, caches and gradients in float32, within 1e-4."""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from documented_models import VALUES, pair
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_portable import transformers as ours

CAUSAL, BASE = "MistralForCausalLM", "MistralModel"
SEEDS = st.integers(0, 2**31)

# XLA compiles each config and each shape, which takes most of a second; so examples share them and differ in values.
CONFIGS = (
    VALUES,
    VALUES
    | {"num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 8, "sliding_window": None, "vocab_size": 23}
    | {"num_hidden_layers": 1, "tie_word_embeddings": True, "rope_theta": 1e6, "hidden_size": 20},
    VALUES
    | {"num_key_value_heads": 3, "num_attention_heads": 3, "head_dim": 2, "sliding_window": 7, "num_hidden_layers": 3}
    | {"tie_word_embeddings": False, "intermediate_size": 5, "hidden_size": 8},
)
ROWS, LENGTH = 3, 12


@cache
def flax_model(name: str, index: int) -> Any:
    """A model of CONFIGS[index] without params; tests share it, and so its compiled functions."""
    return getattr(ours, f"Flax{name}")(ours.MistralConfig(**CONFIGS[index]), _do_init=False)


def flax_pair(name: str, index: int, seed: int, **changed: Any) -> tuple[Any, Any]:
    """Ours and theirs of CONFIGS[index], with the same weights: params have the names of the checkpoint.

    changed: other fields of their config.
    """
    _, theirs = pair(name, CONFIGS[index] | changed, seed)
    model = flax_model(name, index)
    arrays = {key: jnp.asarray(value.numpy()) for key, value in theirs.state_dict().items()}
    if model.config.tie_word_embeddings:
        arrays.pop("lm_head.weight", None)  # torch's name for the embeddings
    model.params = params_of(arrays, name)
    return model, theirs


@st.composite
def batches(draw: st.DrawFn, index: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask [ROWS, LENGTH], rows padded on one side with at least one token each."""
    ids = np.random.default_rng(draw(SEEDS)).integers(0, CONFIGS[index]["vocab_size"], (ROWS, LENGTH))
    mask = np.ones((ROWS, LENGTH), np.int64)
    for row in range(ROWS):
        pads = draw(st.integers(0, LENGTH - 1))
        where = slice(0, pads) if side == "left" else slice(LENGTH - pads, LENGTH)
        ids[row, where], mask[row, where] = 0, 0
    return ids, mask


def params_of(arrays: Mapping[str, Any], name: str) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for key, array in arrays.items():
        *path, last = (f"model.{key}" if name == BASE else key).split(".")
        at = root
        for step in path:
            at = at.setdefault(step, {})
        at[last] = array
    return root


def leaf(params: Any, name: str) -> Any:
    for key in name.split("."):
        params = params[key]
    return params


def close(found: Any, expected: Any, mask: np.ndarray | None = None) -> None:
    found, wanted = np.asarray(found), np.asarray(expected)
    assert found.shape == wanted.shape
    if mask is not None:
        found, wanted = found[mask == 1], wanted[mask == 1]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def positions(mask: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(mask.cumsum(1) - 1, 0))


@pytest.mark.parametrize("name", [BASE, CAUSAL])
@pytest.mark.parametrize("index", range(len(CONFIGS)))
@settings(max_examples=6)
@given(data=st.data(), side=st.sampled_from(["left", "right"]), seed=SEEDS)
def test_a_padded_batch(name: str, index: int, data: st.DataObject, side: str, seed: int) -> None:
    model, theirs = flax_pair(name, index, seed)
    ids, mask = data.draw(batches(index, side))
    got = model(ids, mask, output_hidden_states=True, output_attentions=True)
    with torch.no_grad():
        wanted = theirs(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            position_ids=torch.tensor(positions(mask)),
            output_hidden_states=True,
            output_attentions=True,
            use_cache=False,
        )
    assert list(got.keys()) == list(wanted.keys())
    close(got[0], wanted[0], mask)
    assert not np.asarray(got[0])[mask == 0].any()
    for mine, other in zip(got.hidden_states, wanted.hidden_states, strict=True):
        close(mine, other, mask)
    for mine, other in zip(got.attentions, wanted.attentions, strict=True):
        close(mine.swapaxes(1, 2), other.transpose(1, 2), mask)


@pytest.mark.parametrize("index", range(len(CONFIGS)))
@settings(max_examples=4)
@given(seed=SEEDS, cuts=st.permutations([1, 3, 8]))
def test_with_a_cache(index: int, seed: int, cuts: list[int]) -> None:
    """Several calls, with padding anywhere and a mask as long as the cache, give the outputs of one call."""
    model, _ = flax_pair(CAUSAL, index, seed)
    random = np.random.default_rng(seed)
    ids = random.integers(0, CONFIGS[index]["vocab_size"], (ROWS, LENGTH))
    mask = random.integers(0, 2, (ROWS, LENGTH))
    shown = {"output_hidden_states": True, "output_attentions": True}
    at_once = model(ids, mask, **shown)
    longer = np.concatenate([mask, np.ones((ROWS, 2), np.int64)], axis=1)
    cache, begin = model.init_cache(ROWS, LENGTH + 2), 0
    for cut in cuts:
        span = slice(begin, begin + cut)
        step = model(ids[:, span], longer, positions(mask)[:, span], past_key_values=cache, **shown)
        close(step.logits, at_once.logits[:, span])
        for mine, whole in zip(step.attentions, at_once.attentions, strict=True):
            close(mine[..., :LENGTH], whole[:, :, span])
            assert not mine[..., LENGTH:].any()
        cache, begin = step.past_key_values, begin + cut


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_gradients(index: int) -> None:
    """Gradients of a loss over padded batches with respect to every weight equal those of torch's autograd."""

    @jax.jit
    def loss_and_gradients(params: Any, ids: Any, mask: Any, places: Any) -> Any:
        def loss(params: Any) -> Any:
            logits = flax_model(CAUSAL, index)(ids, mask, places, params=params, train=True).logits
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
            return -(chosen * mask).sum() / mask.sum()

        return jax.value_and_grad(loss)(params)

    @settings(max_examples=4)
    @given(batch=batches(index, "left"), seed=SEEDS)
    def compare(batch: tuple[np.ndarray, np.ndarray], seed: int) -> None:
        # No padding token: torch's table would keep a row of zeros that gets no gradient.
        model, theirs = flax_pair(CAUSAL, index, seed, pad_token_id=None)
        ids, mask = batch
        found, gradients = loss_and_gradients(model.params, ids, mask, positions(mask))
        logits = theirs(
            torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions(mask))
        ).logits
        chosen = torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids)[..., None])[..., 0]
        expected = -(chosen * torch.tensor(mask)).sum() / mask.sum()
        expected.backward()
        close(found, expected.detach())
        for name, weight in theirs.named_parameters():
            close(leaf(gradients, name), weight.grad)

    compare()


def test_jit_and_vmap() -> None:
    """Calls work where ids, params, cache and outputs are traced, and for a batch of params."""
    model, _ = flax_pair(CAUSAL, 0, 0)
    ids = np.arange(12).reshape(2, 6)
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    plain = model(ids, mask)
    compiled = jax.jit(lambda params, *inputs: model(*inputs, params=params))(model.params, ids, mask, positions(mask))
    assert type(compiled) is type(plain)
    close(compiled.logits, plain.logits)

    several = jax.tree.map(lambda weight: jnp.stack([weight, weight * 0.5, weight * 2]), model.params)
    mapped = jax.vmap(lambda params: model(ids, mask, params=params).logits)(several)
    for index in range(3):
        one = jax.tree.map(lambda weight, index=index: weight[index], several)
        close(mapped[index], model(ids, mask, params=one).logits)

    @jax.jit
    def decode(cache: Any, token: Any, position: Any) -> Any:
        return model(token, None, position, past_key_values=cache)

    cache = model.init_cache(1, 6)
    for at in range(6):
        step = decode(cache, ids[1:, at : at + 1], np.full((1, 1), at))
        close(step.logits[0, 0], plain.logits[1, at])
        cache = step.past_key_values


def test_a_window_is_exactly_as_wide_as_it_says() -> None:
    """The original Flax model saw one key more."""
    values = {**VALUES, "num_hidden_layers": 1}
    for window in range(1, 9):
        model = ours.FlaxMistralModel(ours.MistralConfig(**{**values, "sliding_window": window}), seed=1)
        (attentions,) = model(np.arange(20)[None], output_attentions=True).attentions
        seen = (np.asarray(attentions)[0, 0] > 0).sum(-1)
        assert seen.tolist() == [min(row + 1, window) for row in range(20)]


@pytest.mark.parametrize(("dtype", "digits"), [(jnp.bfloat16, 5e-2), (jnp.float16, 5e-3), ("float32", 0.0)])
def test_types(dtype: Any, digits: float) -> None:
    """dtype is the type of the computation; params have their own, and outputs are float32."""
    config = ours.MistralConfig(**VALUES)
    model, wide = ours.FlaxMistralModel(config, seed=3, dtype=dtype), ours.FlaxMistralModel(config, seed=3)
    ids = np.arange(10)[None]
    expected = np.asarray(wide(ids).last_hidden_state)
    found = np.asarray(model(ids).last_hidden_state)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= digits * np.abs(expected).max()
    assert {str(weight.dtype) for weight in jax.tree.leaves(model.params)} == {"float32"}
    half = model.to_bf16(model.params)
    assert {str(weight.dtype) for weight in jax.tree.leaves(half)} == {"bfloat16"}
    assert {str(weight.dtype) for weight in jax.tree.leaves(model.to_fp16(half))} == {"float16"}
    norms = jax.tree.map(lambda weight: weight.ndim == 2, model.params)
    mixed = model.to_bf16(model.params, norms)
    assert str(leaf(mixed, "model.norm.weight").dtype) == "float32"
    assert str(leaf(mixed, "model.embed_tokens.weight").dtype) == "bfloat16"
    close(model.to_fp32(half)["model"]["norm"]["weight"], leaf(half, "model.norm.weight").astype(np.float32))


def test_params_are_made_of_seeds_and_kept(tmp_path: Path) -> None:
    config = ours.MistralConfig(**VALUES)
    one, same, other = (ours.FlaxMistralForCausalLM(config, (1, 1), seed) for seed in (1, 1, 2))
    ids = np.arange(8)[None]
    logits, others = one(ids).logits, one(ids, params=other.params).logits
    assert (logits == one(ids, params=same.params).logits).all()
    assert (logits != others).any()
    drawn = one.init_weights(jax.random.key(5), (1, 1))
    again = one.init_weights(jax.random.PRNGKey(5), (1, 1), params={"model": {"norm": one.params["model"]["norm"]}})
    assert (leaf(drawn, "lm_head.weight") == leaf(again, "lm_head.weight")).all()
    one.save_pretrained(tmp_path)
    loaded, params = ours.FlaxMistralForCausalLM.from_pretrained(tmp_path, _do_init=False, from_pt=True)
    assert (loaded(ids, params=params).logits == logits).all()
    with pytest.raises(ValueError, match="no params"):
        loaded(ids)
    torch_named = ours.MistralForCausalLM.from_pretrained(tmp_path, backend="reference")
    close(torch_named(ids).logits, logits)
    one.save_pretrained(tmp_path, params=other.params)
    assert (ours.FlaxMistralForCausalLM.from_pretrained(tmp_path)(ids).logits == others).all()


def test_experts_and_their_files(tmp_path: Path) -> None:
    """The experts' matrices are one weight of the tree, and separate tensors in the file."""
    config = ours.MistralConfig(**VALUES, num_local_experts=4, num_experts_per_tok=2, model_type="mixtral")
    model = ours.FlaxMistralForCausalLM(config, seed=1)
    ids = np.arange(9)[None]
    model.save_pretrained(tmp_path)
    close(model(ids).logits, ours.MistralForCausalLM.from_pretrained(tmp_path, backend="reference")(ids).logits)
    gradient = jax.grad(lambda params: model(ids, params=params).logits.sum())(model.params)
    assert all(np.isfinite(weight).all() for weight in jax.tree.leaves(gradient))


def test_results_are_tuples_if_asked() -> None:
    model = ours.FlaxMistralForCausalLM(ours.MistralConfig(**VALUES, return_dict=False))
    ids = np.arange(4)[None]
    logits, cache, states = model(ids, None, ids, past_key_values=model.init_cache(1, 6), output_hidden_states=True)
    assert logits.shape == (1, 4, VALUES["vocab_size"])
    assert len(states) == VALUES["num_hidden_layers"] + 1
    assert int(cache["columns"]) == 4
    assert model(ids, return_dict=True).past_key_values is None


MODEL = ours.FlaxMistralForCausalLM(ours.MistralConfig(**VALUES, attention_dropout=0.0))
IDS = np.arange(6).reshape(2, 3)
PLACES = np.broadcast_to(np.arange(3), (2, 3))
REFUSED: dict[str, Callable[[], Any]] = {
    "Make sure to provide `position_ids` when passing `past_key_values`": lambda: MODEL(
        IDS, past_key_values=MODEL.init_cache(2, 4)
    ),
    "input_ids is float64 [2, 3]: pass integers": lambda: MODEL(IDS * 0.5),
    "input_ids is int64 [3]": lambda: MODEL(IDS[0]),
    "token id 30 is outside": lambda: MODEL(IDS + 25),
    "attention_mask has the shape [3]": lambda: MODEL(IDS, np.ones(3)),
    "attention_mask holds other values": lambda: MODEL(IDS, IDS),
    "position_ids must count on": lambda: MODEL(IDS, None, PLACES * 2),
    "65 tokens exceed max_position_embeddings=64": lambda: MODEL(np.zeros((1, 65), np.int64)),
    "max_length=65 exceeds max_position_embeddings=64": lambda: MODEL.init_cache(1, 65),
    "init_cache(0, 4)": lambda: MODEL.init_cache(0, 4),
    "past_key_values have the shape [1, 4]": lambda: MODEL(IDS, None, PLACES, past_key_values=MODEL.init_cache(1, 4)),
    "past_key_values have the shape []": lambda: MODEL(IDS, None, PLACES, past_key_values={}),
    "past_key_values have the shape [], and input_ids": lambda: MODEL(IDS, None, PLACES, past_key_values=3),  # type: ignore[arg-type]
    "the shape [], and input_ids": lambda: MODEL(IDS, None, PLACES, past_key_values={"positions": 1, "columns": 0}),
    "init_cache(True, 4)": lambda: MODEL.init_cache(True, 4),
    "batch_size=1000000000000 is more": lambda: MODEL.init_cache(10**12, 4),
    "output_hidden_states is a str: pass True or False": lambda: MODEL(IDS, output_hidden_states="no"),  # type: ignore[arg-type]
    "return_dict is a str: pass True or False": lambda: MODEL(IDS, return_dict="no"),  # type: ignore[arg-type]
    "config is a dict: pass a MistralConfig": lambda: ours.FlaxMistralModel({}),  # type: ignore[arg-type]
    "seed='x' must be an integer from 0 on": lambda: ours.FlaxMistralModel(MODEL.config, seed="x"),  # type: ignore[arg-type]
    "seed=-1 must be an integer from 0 on": lambda: ours.FlaxMistralModel(MODEL.config, seed=-1),
    "rng is a int: pass a key of jax.random": lambda: MODEL.init_weights(3),
    "params: the model has no a": lambda: MODEL.init_weights(jax.random.key(0), None, {"a": 3}),
    "params: lm_head.weight is a ndarray: pass an array of floats": lambda: MODEL(
        IDS, params={**MODEL.params, "lm_head": {"weight": np.full((30, 12), "x")}}
    ),
    "params is a int: pass a tree": lambda: MODEL(IDS, params=3),  # type: ignore[arg-type]
    "2 + 3 columns exceed the cache's max_length=4": lambda: MODEL(
        IDS,
        None,
        PLACES,
        past_key_values=MODEL(IDS[:, :2], None, PLACES[:, :2], past_key_values=MODEL.init_cache(2, 4)).past_key_values,
    ),
    "params: lm_head.weight is missing, 1 in all": lambda: MODEL(IDS, params={"model": MODEL.params["model"]}),
    "params: the model has no more": lambda: MODEL(IDS, params={**MODEL.params, "more": IDS}),
    "params: lm_head.weight has the shape [2, 3], not [30, 12]": lambda: setattr(
        MODEL, "params", {**MODEL.params, "lm_head": {"weight": IDS}}
    ),
    "attention_dropout=0.1: there is no dropout": lambda: ours.FlaxMistralModel(
        ours.MistralConfig(**VALUES, attention_dropout=0.1)
    )(IDS, train=True),
    "choose 'auto', 'float32'": lambda: ours.FlaxMistralModel(ours.MistralConfig(**VALUES), dtype=jnp.int8),
    "nonsense='x': no argument": lambda: ours.FlaxMistralModel.from_pretrained("tiny", nonsense="x"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        REFUSED[message]()
    assert "\n" not in str(caught.value)


def test_without_jax_one_line_says_what_to_install() -> None:
    code = (
        "import sys, importlib.metadata as m\n"
        "found = m.version\n"
        "def version(name):\n"
        "    if name in ('jax', 'jaxlib'): raise m.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "m.version = version\n"
        "from mistral_portable.transformers import FlaxMistralModel, MistralConfig\n"
        "try: FlaxMistralModel(MistralConfig())\n"
        "except Exception as error: print(error, 'jax' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "jax is not installed: pip install --upgrade 'mistral-portable[jax]' False" in result.stdout

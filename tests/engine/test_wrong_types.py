"""Wrong types are InputErrors of one line, which names the argument; options that are none, the nearest one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mistral_portable as mp
from mistral_portable.errors import InputError


@pytest.fixture(scope="module")
def model() -> mp.Model:
    return mp.load("tiny")


def test_a_text_is_one_message_of_the_user(model: mp.Model) -> None:
    options: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
    assert model.chat("Hello", **options).text == model.chat([{"role": "user", "content": "Hello"}], **options).text


def test_models_and_tokenizers_say_what_they_are(model: mp.Model) -> None:
    shown = repr(model)
    assert shown.startswith(f"<Model {model.source} on {model.backend}: ")
    assert f"{model.config.vocab_size} tokens, context {model.max_context}>" in shown
    assert repr(model.tokenizer) == "<CommonTokenizer sentencepiece v3, 1024 tokens>"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("temprature", "temperature"),
        ("max_new_tokens", "max_tokens"),
        ("topk", "top_k"),
        ("temp", "temperature"),
        ("schem", "schema"),
        ("tols", "tools"),
        ("chache_salt", "cache_salt"),
    ],
)
def test_an_option_that_is_none_names_the_nearest(name: str, near: str, model: mp.Model) -> None:
    wrong: Any = {name: 1}
    for call in (model.generate, model.stream, model.answer):
        with pytest.raises(InputError, match=f"^{name} is no option: is it {near}\\?$"):
            call("x", **wrong)


def test_an_option_that_is_near_none(model: mp.Model) -> None:
    with pytest.raises(InputError, match="frob is no option of generate or chat"):
        model.generate("x", frob=1)


def test_an_argument_that_is_none_names_the_nearest() -> None:
    wrong: Any = {"backnd": "numba"}
    with pytest.raises(TypeError, match=r"^load\(\) has no argument 'backnd': is it 'backend'\?$"):
        mp.load("tiny", **wrong)
    wrong = {"temprature": 1}
    with pytest.raises(TypeError, match=r"^SamplingParams\(\) has no argument 'temprature': is it 'temperature'\?$"):
        mp.SamplingParams(**wrong)
    wrong = {"frob": 1}
    with pytest.raises(TypeError, match=r"^SamplingParams\(\) has no argument 'frob'$"):
        mp.SamplingParams(8, **wrong)


@pytest.mark.parametrize("wrong", [5, None, b"x", {"role": "user", "content": "x"}, 1.5])
def test_conversations(wrong: Any, model: mp.Model) -> None:
    for call in (model.chat, model.tokenizer.chat):
        with pytest.raises(InputError, match="must be a list of mappings with role and content"):
            call(wrong)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model, _: model.tokenizer.encode(5), "text=5 must be a string"),
        (lambda model, _: model.tokenizer.encode(b"x"), "text=b'x' must be a string"),
        (lambda model, _: model.tokenizer.chat("x"), "messages='x' must be a list"),
        (lambda model, _: model.tokenizer.decode("abc"), "tokens='abc' must be a list of token ids"),
        (lambda model, _: model.tokenizer.decode(5), "tokens=5 must be a list of token ids"),
        (lambda model, _: model.tokenizer.decode([1.5]), "token id 1.5 is not an integer"),
        (lambda model, _: model.generate(5), "a prompt is text, a list of token ids, or a list of messages, not 5"),
        (lambda model, _: model.generate("x", {"seed": 1}), "params={'seed': 1} must be SamplingParams"),
        (lambda model, _: mp.perplexity(model, 5), "text=5 must be a text"),  # type: ignore[arg-type]
        (lambda model, _: mp.perplexity("tiny", "x"), "model='tiny' must be a loaded one"),  # type: ignore[arg-type]
        (lambda _, folder: mp.load(5), "model=5 must be a name or a path"),  # type: ignore[arg-type]
        (lambda _, folder: mp.load("tiny", progress=5), "progress=5 must be a function"),  # type: ignore[arg-type]
        (lambda _, folder: mp.load("tiny", chat_template=5), "chat_template=5 must be"),  # type: ignore[arg-type]
        (lambda _, folder: mp.convert(1, folder / "x", "hf"), "model=1 must be a name or a path"),  # type: ignore[arg-type]
        (lambda _, folder: mp.convert("tiny", 5, "hf"), "destination=5 must be a path"),  # type: ignore[arg-type]
        (lambda _, folder: mp.quantize("tiny", 5, "q4_0"), "destination=5 must be a path"),  # type: ignore[arg-type]
    ],
)
def test_other_arguments(call: Callable[[Any, Path], object], words: str, model: mp.Model, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        call(model, tmp_path)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)

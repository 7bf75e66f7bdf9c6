"""Conversion of every kind of tokenizer, and of the chat template."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer.finetunes import CHATML, write_finetune
from tokenizer.vocabularies import FILES, SENTENCEPIECE, from_file, gguf_vocabulary
from weights.files import random_tensors, small_config, write_hf, write_raw

import mistral_portable as mp
from mistral_portable.errors import ConfigError, TokenizerError
from mistral_portable.tokenizer import GGUFVocabulary, TokenizerFile, load_tokenizer
from mistral_portable.tokenizer.vocabulary import to_vocabulary
from mistral_portable.weights import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CHAT = [{"role": "user", "content": "Who has the ball?"}]
TEXT = "Once upon a time, naïve 日本 🙂\n\tx  y"
TOKENS = 3000  # size of a truncated tekken vocabulary: all 131,072 tokens take seconds


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Mistral's tokenizer files; those of tekken truncated."""
    tekken = json.loads(FILES["tekken 240718"].read_text())
    tekken["vocab"] = tekken["vocab"][:TOKENS]
    tekken["config"]["default_vocab_size"] = TOKENS + tekken["config"]["default_num_special_tokens"]
    path = tmp_path_factory.mktemp("tekken") / "tekken.json"
    path.write_text(json.dumps(tekken))
    return {name: FILES[name] for name in SENTENCEPIECE} | {"tekken": path}


def small(folder: Path, file: Path, format: str = "hf", rows: int | None = None) -> Path:
    """A model whose embedding has a row for each token."""
    rows = rows or load_tokenizer(TokenizerFile(file)).vocab_size
    config = small_config(
        vocab_size=rows, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    tensors = random_tensors(config, np.random.default_rng(0))
    if format == "hf":
        write_hf(folder, config, tensors)
    else:
        write_raw(folder, config, tensors)
    shutil.copyfile(file, folder / ("tokenizer.model" if file.suffix == ".v1" else name(file)))
    return folder


def name(file: Path) -> str:
    """The name that Mistral's repositories give the file."""
    return file.name if file.suffix == ".json" else f"tokenizer.model{file.suffix}"


@pytest.mark.parametrize("kind", [*SENTENCEPIECE, "tekken"])
def test_a_file_s_vocabulary_is_that_of_llama_cpp_s_conversion(files: dict[str, Path], kind: str) -> None:
    found, expected = to_vocabulary(TokenizerFile(files[kind])), gguf_vocabulary(files[kind])
    for name in ("model", "tokens", "types", "pre", "bos_token_id", "eos_token_id", "unknown_token_id", "add_bos"):
        assert getattr(found, name) == getattr(expected, name), name
    np.testing.assert_array_equal(np.array(found.scores, np.float32), np.array(expected.scores, np.float32))


def test_merges_are_those_of_gguf(files: dict[str, Path]) -> None:
    from gguf.vocab import MistralVocab

    expected = MistralVocab(files["tekken"].parent).extract_vocab_merges_from_model()  # type: ignore[no-untyped-call]
    assert [merge.decode() for merge in to_vocabulary(TokenizerFile(files["tekken"])).merges] == expected
    assert len(expected) > TOKENS


@pytest.mark.parametrize(("kind", "format"), [("v1", "raw"), ("v3", "raw"), ("v7", "hf"), ("tekken", "hf")])
def test_the_ids_stay_the_same_any_way(tmp_path: Path, files: dict[str, Path], kind: str, format: str) -> None:
    path, expected = small(tmp_path / "source", files[kind], format), load_tokenizer(TokenizerFile(files[kind]))
    for number, to in enumerate(["gguf", "hf", "raw", "mlx"]):
        path = mp.convert(path, tmp_path / f"{number}.{to}", to)
        source = open_checkpoint(path).tokenizer
        assert source is not None
        assert isinstance(source, GGUFVocabulary) == (to == "gguf")
        tokenizer = load_tokenizer(source)
        assert (tokenizer.version, tokenizer.eos_id) == (expected.version, expected.eos_id)
        assert tokenizer.encode(TEXT) == expected.encode(TEXT)
        assert tokenizer.chat(CHAT) == expected.chat(CHAT)


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json", "default", "nowhere"])
def test_the_chat_template_is_carried_over(tmp_path: Path, place: str) -> None:
    text = "{{ bos_token }}[INST] {{ messages }} [/INST]"
    folder = small(tmp_path / "source", FILES["v3"])
    settings: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer"}
    match place:
        case "chat_template.jinja":
            (folder / place).write_text(text)
        case "tokenizer_config.json":
            settings["chat_template"] = text
        case "default":
            settings["chat_template"] = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": text}]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    vocabulary = open_checkpoint(mp.convert(folder, tmp_path / "m.gguf", "gguf")).tokenizer
    assert isinstance(vocabulary, GGUFVocabulary)
    carried = place != "nowhere"
    assert vocabulary.chat_template == (text if carried else "mistral-v3")
    back = mp.convert(tmp_path / "m.gguf", tmp_path / "back", "hf")
    assert (back / "chat_template.jinja").exists() == carried
    if carried:
        assert (back / "chat_template.jinja").read_text() == text


def test_settings_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """They may name tokens that the model needs."""
    folder = small(tmp_path / "source", FILES["v3"])
    (folder / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: not JSON"):
        mp.convert(folder, tmp_path / "m.gguf", "gguf")


def finetune(path: Path, kind: str, template: str = CHATML) -> Path:
    """A small model with the tokenizer of a finetune."""
    write_finetune(path / "tokens", kind, template)
    rows = load_tokenizer(write_finetune(path / "again", kind, template)).vocab_size + 3
    folder = small(path / "source", FILES["v1"], rows=rows)
    (folder / "tokenizer.model").unlink()
    for file in (path / "tokens").iterdir():
        if file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    return folder


@pytest.mark.parametrize(
    ("kind", "template", "text"),
    [
        ("listed", CHATML, None),
        ("tokenizer.json", CHATML, None),
        ("tekken", CHATML, None),
        ("first space", CHATML, "'a <"),
        ("rules", CHATML, "'a"),
        ("tekken", "", None),
    ],
)
def test_rules_of_a_tokenizer_that_gguf_has_no_place_for_are_told_of(
    tmp_path: Path, kind: str, template: str, text: str | None
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mp.convert(finetune(tmp_path, kind, template), tmp_path / "m.gguf", "gguf")
    told = [str(warning.message) for warning in caught if "GGUF has no place" in str(warning.message)]
    assert len(told) == (text is not None)
    assert text is None or f"texts such as {text}" in told[0]
    if not template:
        with pytest.raises(TokenizerError, match="no chat template: give one"):
            mp.load(tmp_path / "m.gguf", backend="reference").chat(CHAT)


@pytest.mark.parametrize(("ends", "lost"), [([2, 7], ""), ([2, 7, 8], ""), ([2, 7, 8, 9, 10], "9, 10 are left out")])
def test_ends_that_gguf_has_no_key_for_are_told_of(tmp_path: Path, ends: list[int], lost: str) -> None:
    """The ids with a known name, such as <|im_end|>, need no key."""
    folder = finetune(tmp_path, "listed")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "</s>"}))
    named = load_tokenizer(TokenizerFile(folder / "tokenizer.model")).control_id("<|im_end|>")
    assert named is not None
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [named, *ends]}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = mp.convert(folder, tmp_path / "m.gguf", "gguf")
    told = [str(warning.message) for warning in caught if "ids that end a text" in str(warning.message)]
    assert len(told) == bool(lost)
    assert lost in "".join(told)
    assert mp.load(path, backend="reference").end_tokens == {named, *ends[:3]}


@pytest.mark.parametrize("kind", ["listed", "tokenizer.json", "tekken"])
def test_a_finetune_survives(tmp_path: Path, kind: str) -> None:
    """Added tokens, chats and ends of folder, GGUF and folder are the same."""
    folder = finetune(tmp_path, kind)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    gguf = mp.convert(folder, tmp_path / "m.gguf", "gguf")
    back = mp.convert(gguf, tmp_path / "back", "hf")
    expected = open_checkpoint(folder)
    assert expected.tokenizer is not None
    tokenizer = load_tokenizer(expected.tokenizer)
    ends = {*expected.config.eos_token_ids, *expected.ends, *tokenizer.end_ids}
    assert ends == {2, 7, tokenizer.control_id("<|im_end|>")}
    for path in (gguf, back):
        found = open_checkpoint(path)
        assert found.tokenizer is not None
        same = load_tokenizer(found.tokenizer)
        for text in (TEXT, "<|im_start|>user\nHi<|im_end|> </s>"):
            assert same.encode(text) == tokenizer.encode(text)
            assert same.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
        assert same.chat(CHAT) == tokenizer.chat(CHAT)
        assert mp.load(path, backend="reference").end_tokens == ends
    with pytest.warns(UserWarning, match="have no place in Mistral's format"):
        mp.convert(gguf, tmp_path / "raw", "raw")


def test_a_tekken_that_is_newer_than_mistral_common(tmp_path: Path, files: dict[str, Path]) -> None:
    """Ids run; for text the newer library is needed."""
    folder = small(tmp_path / "m", files["tekken"], "hf")
    tekken = json.loads((folder / "tekken.json").read_text())
    tekken["config"]["version"] = "v99"
    (folder / "tekken.json").write_text(json.dumps(tekken))
    with pytest.warns(UserWarning, match="version v99 is not known .* pip install -U mistral-common"):
        model = mp.load(folder, backend="reference")
    assert len(model.generate([1, 2], max_tokens=2, temperature=0, ignore_eos=True).tokens) == 2


def test_a_chat_template_is_chosen_when_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}!")
    model = mp.load(chat_template=tmp_path / "mine.jinja", backend="reference")
    assert model.tokenizer.decode(model.tokenizer.chat(CHAT)) == "Who has the ball?!"


@pytest.mark.parametrize("to", ["hf", "mlx"])
def test_files_beside_the_weights_are_copied(tmp_path: Path, to: str) -> None:
    folder = small(tmp_path / "source", FILES["v1"])
    beside = {
        "tokenizer_config.json": '{"tokenizer_class": "LlamaTokenizer"}',
        "special_tokens_map.json": "{}",
        "generation_config.json": '{"eos_token_id": 2}',
        "tokenizer.json": '{"version": "1.0"}',
    }
    for name, text in beside.items():
        (folder / name).write_text(text)
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    (tmp_path / "secret").write_text("x")
    written = mp.convert(folder, tmp_path / "m", to)
    names = {"config.json", "model.safetensors", "tokenizer.model", *beside}
    assert {path.name for path in written.iterdir()} == names
    for name, text in beside.items():
        assert (written / name).read_text() == text
    assert (written / "tokenizer.model").read_bytes() == FILES["v1"].read_bytes()


def test_a_table_with_more_rows_than_tokens_is_padded(tmp_path: Path) -> None:
    folder = small(tmp_path / "source", FILES["v3"], rows=from_file("v3").vocab_size + 2)
    vocabulary = open_checkpoint(mp.convert(folder, tmp_path / "m.gguf", "gguf")).tokenizer
    assert isinstance(vocabulary, GGUFVocabulary)
    assert vocabulary.tokens[-2:] == (b"[PAD32768]", b"[PAD32769]")
    assert (vocabulary.types[-2:], len(vocabulary.scores)) == ((5, 5), 32770)
    assert load_tokenizer(vocabulary).encode(TEXT) == from_file("v3").encode(TEXT)


def test_a_table_with_fewer_rows_than_tokens_is_refused(tmp_path: Path) -> None:
    folder = small(tmp_path / "source", FILES["v3"], rows=100)
    with pytest.raises(ConfigError, match="its tokenizer has 32768 tokens and its embedding table 100 rows"):
        mp.convert(folder, tmp_path / "m.gguf", "gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("to", ["hf", "gguf", "raw", "mlx"])
def test_a_model_without_tokenizer_says_so(tmp_path: Path, to: str) -> None:
    config = small_config()
    write_hf(tmp_path / "source", config, random_tensors(config, np.random.default_rng(0)))
    with pytest.warns(UserWarning, match="has no tokenizer that can be carried over"):
        path = mp.convert(tmp_path / "source", tmp_path / "m", to)
    assert open_checkpoint(path).tokenizer is None

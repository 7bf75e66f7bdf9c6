"""Tokenizer files: their versions, and that every broken file is refused."""

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer.vocabularies import FILES, SENTENCEPIECE, TINY

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer import Tokenizer, TokenizerFile, load_tokenizer
from mistral_portable.tokenizer.version import infer_version


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_a_plain_tokenizer_model_is_recognized(name: str, tmp_path: Path) -> None:
    shutil.copy(FILES[name], tmp_path / "tokenizer.model")
    assert load_tokenizer(TokenizerFile(tmp_path / "tokenizer.model")).version == name.removesuffix("m1")


INST = ["<s>", "</s>", "[INST]", "[/INST]"]
TEKKEN = [*INST, "[SYSTEM_PROMPT]", "[ARGS]", "[CALL_ID]", "[THINK]"]


@pytest.mark.parametrize(
    ("control", "template", "version"),
    [
        (INST[:2], None, "v1"),
        (INST[:2], "[INST]", "v1"),
        (INST, None, "v3"),
        ([*INST, "[control_8]"], None, "v2"),
        (INST, "mistral-v1", "v1"),
        (TEKKEN, "mistral-v3-tekken", "v3"),
        (TEKKEN, "[INST]", "v3"),
        (TEKKEN, "[SYSTEM_PROMPT] [INST]", "v7"),
        (TEKKEN, "[SYSTEM_PROMPT] [INST] [CALL_ID] [ARGS]", "v11"),
        (TEKKEN, "[SYSTEM_PROMPT] [INST] [ARGS]", "v13"),
        (TEKKEN, None, "v13"),
        (TEKKEN[:-1], None, "v11"),
        (TEKKEN[:-3], None, "v7"),
        ([*TEKKEN, "[MODEL_SETTINGS]"], None, "v15"),
    ],
)
def test_inferred_versions(control: list[str], template: str | None, version: str) -> None:
    assert infer_version(control, template) == version


def opens(name: str, content: bytes) -> Tokenizer | None:
    """The tokenizer of a file, or None if it is refused."""
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        try:
            return load_tokenizer(TokenizerFile(path))
        except TokenizerError:
            return None


def works(tokenizer: Tokenizer) -> bool:
    """Whether it encodes texts as ids that exist, and decodes ids."""
    tokens = [token for text in ("Hello", "é🦊\n", " [INST] ") for token in tokenizer.encode(text)]
    stream = tokenizer.stream()
    return "".join([*map(stream.push, tokens), stream.flush()]) == tokenizer.decode(tokens)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a file with a few bytes overwritten, deleted or inserted, most likely at its two ends."""
    out = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        near_an_end = st.integers(0, 300) | st.integers(max(0, len(out) - 300), len(out))
        start = draw(near_an_end | st.integers(0, len(out)))
        out[start : start + draw(st.integers(0, 40))] = draw(st.binary(max_size=8))
    return bytes(out)


@given(damaged(TINY.read_bytes()), st.sampled_from(["tokenizer.model", "tokenizer.model.v3"]))
def test_a_damaged_sentencepiece_model_is_refused_or_works(content: bytes, name: str) -> None:
    tokenizer = opens(name, content)
    assert tokenizer is None or works(tokenizer)


@given(st.integers(0, len(TINY.read_bytes()) - 1))
def test_a_truncated_sentencepiece_model_is_refused_or_whole(size: int) -> None:
    """The normalizer comes last, so truncation can remove it alone and keep all tokens."""
    tokenizer = opens("tokenizer.model.v3", TINY.read_bytes()[:size])
    assert tokenizer is None or tokenizer.vocab_size == 1024


@cache
def small_tekken() -> dict[str, Any]:
    """Reduce the real file to 20 special tokens and 280 texts."""
    tekken: dict[str, Any] = json.loads(FILES["tekken 240718"].read_text())
    sizes = {"num_vocab_tokens": 280, "default_vocab_size": 300, "default_num_special_tokens": 20}
    return {"config": tekken["config"] | sizes, "vocab": tekken["vocab"][:280]}


def encoded(tekken: dict[str, Any]) -> bytes:
    return json.dumps(tekken).encode()


@given(st.data())
def test_a_damaged_tekken_file_is_refused_or_works(data: st.DataObject) -> None:
    tokenizer = opens("tekken.json", data.draw(damaged(encoded(small_tekken()))))
    assert tokenizer is None or works(tokenizer)


scalars: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers(-2, 10**9) | st.floats() | st.text(max_size=4)
json_values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=4), scalars, max_size=2)


@given(st.sampled_from(["pattern", "default_vocab_size", "default_num_special_tokens", "version"]), json_values)
def test_a_tekken_file_with_a_strange_setting_is_refused_or_works(key: str, value: Any) -> None:
    tekken = small_tekken()
    tokenizer = opens("tekken.json", encoded(tekken | {"config": tekken["config"] | {key: value}}))
    assert tokenizer is None or works(tokenizer)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": {"default_vocab_size": 270}}, "fewer than 256 tokens"),
        ({"config": {"default_num_special_tokens": 10**9}}, "declares 100000 special tokens or more"),
        ({"config": {"version": "v99"}}, "version v99 is not known to this mistral-common"),
        ({"config": {"pattern": "("}}, "corrupt"),
        ({"config": {"pattern": ""}}, "PanicException"),
        ({"vocab": []}, "corrupt"),
        ({"special_tokens": [{"rank": 999, "token_str": "<s>", "is_control": True}]}, "corrupt"),
    ],
)
def test_broken_tekken_files(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    tekken = small_tekken()
    if "config" in change:
        change = {"config": tekken["config"] | change["config"]}
    path = tmp_path / "tekken.json"
    path.write_bytes(encoded(tekken | change))
    with pytest.raises(TokenizerError, match=reason):
        load_tokenizer(TokenizerFile(path))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.model", b"", "empty; download it again"),
        ("tokenizer.model", b"<html>", "corrupt"),
        ("tokenizer.model.v3", b"<html>", r"could not parse ModelProto from tokenizer\.model\.v3"),
        ("tokenizer.model.v99", TINY.read_bytes(), "Unrecognized tokenizer file"),
        ("tekken.json", b"{", "corrupt"),
        ("tokenizer.json", b"{}", "unknown format; pass a tokenizer.model"),
        ("tokenizer.model.v3", None, "No such file"),
    ],
)
def test_other_files_are_refused(name: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TokenizerError, match=reason) as caught:
        load_tokenizer(TokenizerFile(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(TokenizerError, match="larger than 256 MiB"):
        load_tokenizer(TokenizerFile(path))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").mkdir()
    with pytest.raises(TokenizerError, match="check the path"):
        load_tokenizer(TokenizerFile(tmp_path / "tokenizer.model"))


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_importing_loads_no_library() -> None:
    heavy = {"mistral_common", "sentencepiece", "tiktoken", "gguf", "google.protobuf", "torch", "transformers"}
    loaded = run("import sys, mistral_portable.tokenizer; print(*sys.modules)").split()
    assert not heavy.intersection(loaded)


@pytest.mark.parametrize("name", ["v3", "tekken 240718"])
def test_normal_use_prints_nothing(name: str) -> None:
    script = f"""
from pathlib import Path
from mistral_portable.tokenizer import TokenizerFile, load_tokenizer
tokenizer = load_tokenizer(TokenizerFile(Path({str(FILES[name])!r})))
tokens = tokenizer.chat([{{"role": "user", "content": "Hi"}}, {{"role": "assistant", "content": "Yo"}}])
print(tokenizer.decode(tokens), tokenizer.pad_id)
"""
    assert run(script).startswith("Hi")

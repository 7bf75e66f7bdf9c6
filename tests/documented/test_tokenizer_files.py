"""Tokenizers are opened from and saved to folders, models and the hub; a saved one opens as an equal one."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from documented.tokenizers import ours
from tokenizer.finetunes import CHATML, write_finetune
from tokenizer.strategies import user
from tokenizer.vocabularies import FILES, TINY
from weights.hub_server import Hub

import mistral_portable as mp
from mistral_portable.errors import CheckpointError, TokenizerError
from mistral_portable.transformers import AutoTokenizer, MistralCommonTokenizer, PreTrainedTokenizerFast

TEXT = "Once upon a time 🦊 <s>"
CHAT = [user("Hi")]


def write(folder: Path, **files: str) -> Path:
    """A folder with copies of Mistral's tokenizer files: `write(folder, v3="tokenizer.model.v3")`."""
    folder.mkdir(exist_ok=True)
    for name, target in files.items():
        (folder / target).write_bytes(FILES[name.replace("_", " ")].read_bytes())
    return folder


def vocabulary(tokenizer: MistralCommonTokenizer | PreTrainedTokenizerFast) -> tuple[Any, ...]:
    return tokenizer.vocab_size, tokenizer.encode(TEXT), tokenizer.apply_chat_template(CHAT)


@pytest.mark.parametrize("name", ["v1", "v7m1", "tekken 240718"])
def test_saved_and_opened_again_it_is_equal(name: str, tmp_path: Path) -> None:
    saved = ours(name).save_pretrained(tmp_path / "new" / "folder")
    assert [Path(file).parent for file in saved] == [tmp_path / "new" / "folder"]
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [Path(saved[0]).name]
    assert Path(saved[0]).read_bytes() == FILES[name].read_bytes()
    assert vocabulary(MistralCommonTokenizer.from_pretrained(tmp_path / "new" / "folder")) == vocabulary(ours(name))


def test_a_folder_prefers_tekken_then_the_last_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", v1="tokenizer.model", v3="tokenizer.model.v3", v2="tokenizer.model.v2")
    assert vocabulary(AutoTokenizer.from_pretrained(folder)) == vocabulary(ours("v3"))
    write(folder, tekken_240718="tekken.json")
    assert vocabulary(AutoTokenizer.from_pretrained(str(folder))) == vocabulary(ours("tekken 240718"))


def test_a_plain_tokenizer_model_is_of_the_version_that_its_tokens_say(tmp_path: Path) -> None:
    """transformers takes the file for v1 and writes [INST] as text, which models of v3 were not trained on."""
    folder = write(tmp_path / "a", v3="tokenizer.model")
    assert MistralCommonTokenizer.from_pretrained(folder).apply_chat_template(CHAT) == [1, 3, 16127, 4]


def test_modes_and_sides_are_passed_on() -> None:
    tokenizer = AutoTokenizer.from_pretrained(
        "tiny",
        mode="finetuning",
        padding_side="right",
        truncation_side="left",
        model_max_length=4,
        model_input_names=["input_ids"],
    )
    assert tokenizer(["a b c d e", "a"], padding=True, truncation=True).keys() == {"input_ids"}
    ids = tokenizer("a b c d e", truncation=True).input_ids
    assert (ids[0], ids[-1], len(ids)) == (tokenizer.bos_token_id, tokenizer.eos_token_id, 4)
    assert tokenizer(["a b", "a"], padding=True).input_ids[1][-1] == tokenizer.pad_token_id


@pytest.mark.parametrize("form", ["gguf", "folder", "safetensors", "tar"])
def test_any_model_that_is_read(form: str, tmp_path: Path) -> None:
    """A GGUF file contains its vocabulary; other models have a tokenizer beside the weights."""
    model: Path = tmp_path / "model.gguf"
    if form in ("gguf", "folder"):
        with pytest.warns(UserWarning, match="window of 64"):
            mp.convert("tiny", model, to="gguf")
        model = tmp_path if form == "folder" else model
    elif form == "safetensors":
        model = TINY.parent / "model.safetensors"
    else:
        mp.convert("tiny", tmp_path / "raw", to="raw")
        model = tmp_path / "model.tar"
        with tarfile.open(model, "w") as archive:
            archive.add(tmp_path / "raw", "raw")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tiny = AutoTokenizer.from_pretrained("tiny")
    assert vocabulary(tokenizer) == vocabulary(tiny)
    assert tokenizer.get_vocab() == tiny.get_vocab()
    tokenizer.save_pretrained(tmp_path / "saved")
    assert vocabulary(AutoTokenizer.from_pretrained(tmp_path / "saved")) == vocabulary(tiny)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    refusals: list[tuple[Any, type[Exception], str]] = [
        (tmp_path, ValueError, "no tekken.json, no tokenizer.model"),
        (tmp_path / "missing", ValueError, "no such file or folder, and no name on the Hugging Face hub"),
        ("", ValueError, "no tekken.json|no such file"),
        (tmp_path / "a.txt", CheckpointError, "no GGUF, safetensors or torch file"),
        (tmp_path / "tokenizer.model.v3", TokenizerError, "corrupt"),
        (tmp_path / "hf", ValueError, "tokenizer"),
    ]
    (tmp_path / "a.txt").write_text("Hello, this is no model")
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "hf" / name).write_bytes((TINY.parent / name).read_bytes())
    with pytest.raises(ValueError, match="is a file; pass a folder"):
        ours("v3").save_pretrained(tmp_path / "a.txt")
    for model, error, reason in refusals:
        if model == tmp_path / "tokenizer.model.v3":
            model.write_bytes(TINY.read_bytes()[:1000])
        with pytest.raises(error, match=reason) as caught:
            AutoTokenizer.from_pretrained(model)
        assert "\n" not in str(caught.value)


def test_a_chat_of_another_family_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    from mistral_portable.tokenizer.vocabulary import to_vocabulary

    source = to_vocabulary(mp.tokenizer.TokenizerFile(TINY))
    with pytest.warns(
        UserWarning, match="GGUF file's tokenizer: added tokens or a chat template that are not Mistral's"
    ):
        tokenizer = MistralCommonTokenizer(replace(source, chat_template="<|im_start|>"))
    assert tokenizer.encode("Hi") == AutoTokenizer.from_pretrained("tiny").encode("Hi")
    with pytest.raises(ValueError, match="chat template is not Mistral's"):
        tokenizer.apply_chat_template(CHAT)


# Runs each line and prints a JSON line for it: a value, or the error's type and text.
CLIENT = """
import json, sys
from mistral_portable.transformers import AutoTokenizer
for line in sys.argv[1:]:
    try:
        print(json.dumps(eval(line)))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def with_hub(url: str, home: Path, *lines: str, **environment: str) -> list[Any]:
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-c", CLIENT, *lines],
        env=kept | own | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_of_a_repository_only_the_tokenizer_is_downloaded(tmp_path: Path) -> None:
    files = {"tokenizer.model.v3": TINY.read_bytes(), "model.safetensors": b"large", "config.json": b"{}"}
    opened = f"AutoTokenizer.from_pretrained('some/model').encode({TEXT!r})"
    elsewhere = f"AutoTokenizer.from_pretrained('some/model', cache_dir={str(tmp_path / 'b')!r}, revision='main')"
    with Hub({"some/model": files, "some/weights": {"model.safetensors": b"large"}}, gated=("some/secret",)) as hub:
        first, second, refused, gated, revision = with_hub(
            hub.url,
            tmp_path / "a",
            opened,
            f"{elsewhere}.encode({TEXT!r})",
            "AutoTokenizer.from_pretrained('some/weights')",
            "AutoTokenizer.from_pretrained('some/secret')",
            "AutoTokenizer.from_pretrained('some/model', revision='v9')",
        )
        got = [path for method, path, _ in hub.requests if method == "GET" and "resolve" in path]
    assert first == second == AutoTokenizer.from_pretrained("tiny").encode(TEXT)
    assert {path.rpartition("/")[2] for path in got} == {"tokenizer.model.v3"}
    assert refused == [
        "InputError",
        "some/weights: no tekken.json, no tokenizer.model* and no tokenizer.json in the repository",
    ]
    assert gated[0] == "CheckpointError"
    assert "access is restricted" in gated[1]
    assert "no revision 'v9'" in revision[1]

    cached = "AutoTokenizer.from_pretrained('some/model', local_files_only=True).encode('Hi')"
    missing = "AutoTokenizer.from_pretrained('some/other', local_files_only=True)"
    found, not_found = with_hub("http://127.0.0.1:9", tmp_path / "a", cached, missing)
    assert found == AutoTokenizer.from_pretrained("tiny").encode("Hi")
    assert not_found[0] == "CheckpointError"
    assert "cache" in not_found[1]


def test_of_a_finetunes_repository_settings_and_templates_are_downloaded(tmp_path: Path) -> None:
    folder = tmp_path / "finetune"
    write_finetune(folder, "listed", CHATML)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "brief.jinja").write_text("{{ messages[0].content }}")
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "other").mkdir()
    (folder / "other" / "tokenizer.json").write_text("{}")
    found = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
    chat = f"AutoTokenizer.from_pretrained('some/finetune').apply_chat_template({CHAT!r}, chat_template="
    with Hub({"some/finetune": files | {"model.safetensors": b"large"}}) as hub:
        own, brief = with_hub(hub.url, tmp_path / "a", chat + "None)", chat + "'brief')")
        got = {path.partition("/resolve/")[2].partition("/")[2] for _, path, _ in hub.requests if "resolve" in path}
    here = AutoTokenizer.from_pretrained(folder)
    assert (own, brief) == (here.apply_chat_template(CHAT), here.encode("Hi", add_special_tokens=False))
    assert got == files.keys() - {"config.json", "other/tokenizer.json"}


def test_one_file_of_a_repository_brings_its_vocabulary(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="window of 64"):
        mp.convert("tiny", tmp_path / "tiny.gguf", to="gguf")
    opened = "AutoTokenizer.from_pretrained('some/gguf:tiny.gguf'"
    with Hub({"some/gguf": {"tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()}}) as hub:
        ids, refused = with_hub(hub.url, tmp_path, f"{opened}).encode({TEXT!r})", f"{opened}, force_download=True)")
    assert ids == AutoTokenizer.from_pretrained("tiny").encode(TEXT)
    assert refused == [
        "InputError",
        "some/gguf:tiny.gguf: force_download cannot be used with one file of a repository; download it first",
    ]


def test_uploads(tmp_path: Path) -> None:
    folder = str(tmp_path / "my-model")
    saved = "AutoTokenizer.from_pretrained('tiny').save_pretrained"
    with Hub({}) as hub:
        address, *_, refused = with_hub(
            hub.url,
            tmp_path,
            "AutoTokenizer.from_pretrained('tiny').push_to_hub('me/one', token='secret', commit_message='New')",
            f"{saved}({folder!r}, push_to_hub=True, token='secret', repo_id='me/two')",
            f"{saved}({folder!r}, push_to_hub=True, token='secret', repo_url='{hub.url}/me/three')",
            f"{saved}({folder!r}, push_to_hub=True, token='secret', organization='us')",
            "AutoTokenizer.from_pretrained('tiny').push_to_hub('me/one', token='wrong')",
        )
    assert address.startswith(hub.url)
    expected = {"tokenizer.model.v3": TINY.read_bytes()}
    assert hub.uploads == dict.fromkeys(["me/one", "me/two", "me/three", "us/my-model"], expected)
    assert refused[0] == "CheckpointError"
    assert "me/one: the upload failed" in refused[1]
    assert "\n" not in refused[1]

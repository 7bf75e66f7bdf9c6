"""One way to name things: the model, options, formats; and hints for who writes it another way."""

import json
from pathlib import Path

import pytest
import typer
from cli.processes import Result, invoke
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.cli.hints import name_options
from mistral_portable.cli.ranges import Range


@pytest.mark.parametrize("words", [("tiny",), ("--model", "tiny"), ("-m", "tiny")])
def test_the_model_is_the_first_argument_or_an_option(words: tuple[str, ...], tmp_path: Path) -> None:
    assert json.loads(invoke("inspect", *words, "--json").out)["path"].endswith("tiny")
    assert invoke("chat", *words, stdin=b"/exit\n") == Result(0, "", "")
    assert "decode:0" in invoke("bench", *words, "decode:0", "--repeat", "1").out
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a little dog. " * 9)
    assert invoke("perplexity", *words, str(text), "--context", "16").out.startswith("perplexity ")
    assert invoke("convert", *words, str(tmp_path / "new")).status == 0
    assert invoke("quantize", *words, str(tmp_path / "new.gguf"), "Q4_0").out.endswith("MiB\n")


def test_perplexity_takes_its_text_by_an_option_too(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a little dog. " * 9)
    plain = invoke("perplexity", "tiny", str(text), "--context", "16")
    assert invoke("perplexity", "-m", "tiny", "-f", str(text), "--context", "16") == plain
    assert invoke("perplexity", "tiny").status == 2


@pytest.mark.parametrize("command", ["inspect", "chat", "verify", "serve"])
def test_a_model_is_named_once(command: str) -> None:
    result = invoke(command, "tiny", "--model", "other")
    assert (result.status, result.out) == (2, "")
    assert "'tiny' beside --model 'other': give one of them" in result.err


def test_bench_without_a_model_is_of_the_built_in_one() -> None:
    assert "decode:0" in invoke("bench", "decode:0", "--repeat", "1").out
    wrong = invoke("bench", "decode:x")
    assert wrong.status == 2
    assert "'decode:x' is not prefill:TOKENS" in wrong.err


def test_short_options() -> None:
    short = invoke("run", "-m", "tiny", "-p", "Once", "-n", "8", "-t", "1", "-c", "64", "-s", "3")
    long = ("--max-tokens", "8", "--threads", "1", "--max-context", "64", "--seed", "3")
    assert short == invoke("run", "Once", "--model", "tiny", *long)
    assert short.status == 0


def test_the_format_is_that_of_the_name(tmp_path: Path) -> None:
    file, folder = tmp_path / "x.gguf", tmp_path / "x"
    assert "gguf" in invoke("convert", "tiny", str(file)).out
    assert file.read_bytes()[:4] == b"GGUF"
    assert ": hf, " in invoke("convert", "tiny", str(folder)).out
    assert ": raw, " in invoke("convert", "tiny", str(tmp_path / "raw"), "--to", "raw").out
    refused = invoke("convert", "tiny", str(tmp_path / "x.safetensors"))
    assert refused.status == 2
    assert "a model is a folder, or a file that ends in .gguf" in refused.err


def test_quantize_takes_its_type_as_llama_cpp_does(tmp_path: Path) -> None:
    positional = invoke("quantize", "tiny", str(tmp_path / "a.gguf"), "Q8_0")
    assert ": q8_0, " in positional.out
    invoke("quantize", "tiny", str(tmp_path / "b.gguf"), "--type", "q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    twice = invoke("quantize", "tiny", str(tmp_path / "c.gguf"), "Q8_0", "--type", "q4_0")
    assert (twice.status, "'Q8_0' beside --type 'q4_0'" in twice.err) == (2, True)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("run x --n-predict 4", "(--n-predict is --max-tokens here)"),
        ("run x --max_tokens 4", "(--max_tokens is --max-tokens here)"),
        ("run x --max-new-tokens=4", "(--max-new-tokens is --max-tokens here)"),
        ("run x --temp 0", "(--temp is --temperature here)"),
        ("run x -ngl 99", "(-ngl is --backend here)"),
        ("run x -hf a/b", "(-hf is --model here)"),
        ("serve --n_ctx 4", "(--n_ctx is --max-context here)"),
        ("run x y", "(quote the prompt; --model names the model)"),
        ("generate x", "No such command 'generate' (is it 'run'?)"),
        ("server", "No such command 'server' (is it 'serve'?)"),
        ("ls", "No such command 'ls' (is it 'list'?)"),
        ("download x", "No such command 'download' (is it 'pull'?)"),
        ("perplxity", "(is it 'perplexity'?)"),
    ],
)
def test_spellings_of_other_tools(line: str, hint: str) -> None:
    result = invoke(*line.split())
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert hint in result.err


def test_an_option_without_its_value() -> None:
    assert "Option '--draft' requires an argument (auto|suffix|off|MODEL)" in invoke("run", "x", "--draft").err
    assert "Option '--seed' requires an argument" in invoke("run", "x", "--seed").err


@pytest.mark.parametrize("line", ["inspect --n-predict 4 tiny", "frobnicate", "run x --frob"])
def test_no_hint_where_nothing_is_meant(line: str) -> None:
    result = invoke(*line.split())
    assert (result.status, "here" in result.err, "(is it" in result.err) == (2, False, False)


def test_errors_name_options() -> None:
    options = ["--max-context", "-c", "--ignore-eos", "--device", "--json-schema", "--cache-ram"]
    for message, expected in {
        "max_context=9 must be from 1 to max_position_embeddings=8": "--max-context 9 must be from 1 to "
        "max_position_embeddings=8",
        "ignore_eos=True: no": "--ignore-eos: no",
        "backend 'numba', device='cpu': no": "backend 'numba', --device 'cpu': no",
        "schema='' must be a text": "--json-schema '' must be a text",
        "it takes 3 MiB, and cache_bytes=1048576 allows 1 MiB": "it takes 3 MiB, and --cache-ram 1 allows 1 MiB",
        "devices=3, load(device=3), --device=3": "devices=3, load(device=3), --device=3",
    }.items():
        assert name_options(message, options) == expected
    assert name_options("device=3", ["-d"]) == "device=3"


@pytest.mark.parametrize(
    ("command", "option", "wrong", "range"),
    [
        ("run", "--top-p", "0", "a number in (0, 1]"),
        ("run", "--temperature", "nan", "a number in [0, 100]"),
        ("run", "--max-tokens", "0", "an integer >= 1"),
        ("run", "--threads", "1.5", "an integer >= 1"),
        ("serve", "--port", "65536", "an integer in [0, 65535]"),
        ("serve", "--deadline", "-1", "a number >= 0"),
        ("perplexity", "--context", "3", "an integer >= 4"),
    ],
)
def test_help_and_errors_say_the_same_range(
    command: str, option: str, wrong: str, range: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    result = invoke(command, option, wrong)
    assert result.status == 2
    assert f"'{wrong}' is not {range}" in result.err
    shown = " ".join(invoke(command, "--help").out.split())
    assert f"; {range}." in shown.partition(f"{option} ")[2][:250]


@given(st.integers(-5, 5), st.integers(0, 5), st.integers(-20, 20))
def test_a_range_takes_what_it_says(low: int, width: int, value: int) -> None:
    limited = Range(low, low + width)
    if low <= value <= low + width:
        assert limited(str(value)) == value
    else:
        with pytest.raises(typer.BadParameter, match="is not an integer in"):
            limited(str(value))

"""`convert` on the command line."""

from pathlib import Path

import pytest
from cli.processes import invoke

import mistral_portable as mp
from mistral_portable.cli.convert import Format
from mistral_portable.conversion import FORMATS
from mistral_portable.weights import open_checkpoint


def test_every_format_is_offered() -> None:
    assert [format.value for format in Format] == list(FORMATS)


def test_it_converts_and_says_what_it_wrote(tmp_path: Path) -> None:
    result = invoke("convert", "tiny", str(tmp_path / "m.gguf"), "--to", "gguf", "--dtype", "float16", "--window", "8")
    assert (result.status, result.out) == (0, f"{tmp_path / 'm.gguf'}: gguf, 6.8 MiB\n")
    assert result.err.startswith("note: weights stored as bfloat16 are rounded to float16.")
    assert "note: the window of 8 is written" in result.err
    opened = open_checkpoint(tmp_path / "m.gguf")
    assert opened.tensors["lm_head.weight"].dtype == "float16"
    assert set(opened.config.layer_windows) == {8}
    again = invoke("convert", "tiny", str(tmp_path / "m.gguf"), "--to", "gguf")
    assert (again.status, again.out) == (2, "")
    assert "exists already" in again.err
    assert invoke("convert", "tiny", str(tmp_path / "m.gguf"), "--to", "gguf", "--overwrite").status == 0
    assert open_checkpoint(tmp_path / "m.gguf").tensors["lm_head.weight"].dtype == "bfloat16"


@pytest.mark.parametrize("size", ["4M", "4m", None])
def test_the_spelling_of_the_script_in_transformers(tmp_path: Path, size: str | None) -> None:
    """`--input_dir /path/to/downloaded/mistral/weights --model_size 7B --output_dir /output/path`"""
    raw = mp.convert("tiny", tmp_path / "raw", "raw")
    sized = ["--model_size", size] if size else []
    result = invoke("convert", "--input_dir", str(raw), *sized, "--output_dir", str(tmp_path / "hf"))
    assert (result.status, result.err) == (0, "")
    assert open_checkpoint(tmp_path / "hf").format == "safetensors"


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("convert", 2, "give it once, as SRC or as --input_dir"),
        ("convert tiny", 2, "give it once, as DST or as --output_dir"),
        ("convert tiny OUT --output_dir OUT", 2, "give it once, as DST"),
        ("convert tiny --input_dir tiny OUT", 2, "give it once, as SRC"),
        ("convert tiny OUT --to onnx", 2, "'--to'"),
        ("convert tiny OUT --dtype int8", 2, "--dtype 'int8': choose one of float32, float16, bfloat16"),
        ("convert tiny OUT --window 0", 2, "'--window'"),
        ("convert tiny OUT --model_size 7B", 2, "--model_size 7B: tiny has 3,541,248 parameters; say 4M"),
        ("convert /no/such/model OUT", 1, "/no/such/model"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, line: str, status: int, words: str) -> None:
    result = invoke(*[word.replace("OUT", str(tmp_path / "out")) for word in line.split()])
    assert (result.status, result.out) == (status, "")
    assert result.err.count("\n") == 1
    assert words in result.err
    assert list(tmp_path.iterdir()) == []

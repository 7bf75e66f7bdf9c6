"""Every error is one line and an exit status, never a traceback."""

import shutil
from pathlib import Path

import pytest
from cli.processes import invoke

import mistral_portable as mp
from mistral_portable import errors
from mistral_portable.weights import open_checkpoint

TINY = open_checkpoint("tiny").path


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("run", 2, "the prompt is empty"),
        ("run --chat", 2, "the prompt is empty"),
        ("run x --model ./gone/model", 1, "no such file or folder"),
        ("run x --revision main", 1, "--revision 'main'"),
        ("run x --model /no/such/model", 1, "/no/such/model"),
        ("run x --backend frob", 1, "'frob' is unknown"),
        ("run x --dtype int3", 1, "int3"),
        ("run x --backend reference --dtype int8", 1, "it computes in float32, float64; choose"),
        ("run x --quantize q3", 2, "--quantize 'q3': choose one of q4_0, q4_1, q5_0, q5_1, q8_0"),
        ("run x --backend reference --kv-cache q8_0", 1, "'reference', --kv-cache 'q8_0': it keeps"),
        ("run x --backend reference --kv-cache frob", 1, "--kv-cache 'frob'"),
        (
            "run x --backend reference --device cpu",
            1,
            "backend 'reference', --device 'cpu': it has no such choice; leave",
        ),
        (
            "run x --backend numba --attention sdpa",
            1,
            "backend 'numba', --attention 'sdpa': it has no such choice; leave",
        ),
        ("run x --backend numba --quantize nf4", 1, "backend 'numba', --quantize 'nf4': it has no such choice; leave"),
        (
            "run x --backend numba --tensor-parallel 2 --temperature 0",
            1,
            "backend 'numba', --tensor-parallel 2: it has no",
        ),
        ("run x --backend torch --tensor-parallel 2 --temperature 0", 1, "torchrun has started no processes: begin"),
        ("run tiny --backend jax --device cuda", 1, "backend 'jax', --device 'cuda': it has no such choice; leave"),
        ("run tiny --backend jax --dtype int8", 1, "computes in float32, bfloat16, float16, float64; choose one"),
        ("run x --backend mlx --device cuda", 1, "backend 'mlx', --device 'cuda': it has no such choice; leave"),
        ("run x --ray local", 2, "--ray 'local' is where stages run: give stages, too"),
        ("run x --ray nowhere --stages 2", 2, "--ray 'nowhere' must be local, auto, or HOST:PORT"),
        ("serve --replicas 2", 2, "--replicas and --threads-per-replica need --ray"),
        ("serve --ray local --stages 2 --replicas 2", 2, "--threads-per-replica need --ray, and do not go with --st"),
        ("serve --ray local --stages 2 --max-replicas 2", 2, "--max-replicas needs --ray, and does not go with --st"),
        ("serve --ray local --port 0", 2, "--port 0 does not go with --ray"),
        (
            "serve --ray local --tensor-parallel 2",
            2,
            "--tensor-parallel does not go with --ray: a replica is one process",
        ),
        ("serve --ray local --threads 2", 2, "--threads does not go with --ray: give --threads-per-replica"),
        ("chat --quantize q3", 2, "--quantize 'q3'"),
        ("run x --window 0", 2, "'--window'"),
        ("run x --window -1", 2, "'--window'"),
        ("run x --window 1_0", 2, "'--window'"),
        ("run x --window wide", 2, "'wide' is not"),
        (f"run x --window {'9' * 5000}", 2, "'--window'"),
        ("run x --temperature -1", 2, "'--temperature'"),
        ("run x --temperature nan", 2, "'--temperature'"),
        ("run x --temperature hot", 2, "'--temperature'"),
        ("run x --max-tokens 0", 2, "'--max-tokens'"),
        ("run x --top-p 0", 2, "'0' is not a number in (0, 1]"),
        ("run x --seed -1", 2, "'--seed'"),
        ("run x --threads 0", 2, "'--threads'"),
        ("run x --max-context 999999999", 2, "--max-context 999999999"),
        ("run x --logprobs 1", 2, "'--logprobs'"),
        ("run x --logprobs 99999 --json", 2, "--logprobs 99999"),
        ("run one-two-three --max-context 2", 2, "tokens > 2 maximum: shorten it, or raise --max-context 2"),
        ("run x y", 2, "y"),
        ("run x --frob", 2, "--frob"),
        ("run \udcff", 2, "it is not UTF-8 text: byte 0xff at index 0"),
        ("frob", 2, "'frob'"),
        ("inspect", 2, "'MODEL': give a model"),
        ("inspect /no/such/model", 1, "/no/such/model"),
        ("inspect tiny --graph dot", 2, "'--graph'"),
        ("inspect tiny --graph text --json", 2, "'--graph'"),
        ("inspect tiny --context 999999999", 2, "--context 999999999"),
        ("verify /no/such/model", 1, "/no/such/model"),
        ("verify tiny --backend frob", 1, "'frob' is unknown"),
        ("verify tiny --quantize frob", 2, "--quantize 'frob'"),
        ("chat --window none --model /no/such/model", 1, "/no/such/model"),
    ],
)
def test_one_line(line: str, status: int, words: str) -> None:
    result = invoke(*line.split())
    assert (result.status, result.out) == (status, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert words in result.err


@pytest.mark.parametrize("command", ["run", "chat"])
def test_standard_input_that_is_not_utf8(command: str) -> None:
    result = invoke(command, stdin=b"ab\xff")
    assert (result.status, result.out) == (2, "")
    assert result.err == "error: standard input is not UTF-8 text: byte 0xff at index 2\n"


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGUF\x03" + b"\xff" * 40, b"\x08" + b"\0" * 7 + b"{", b"hello" * 9]
)
@pytest.mark.parametrize("command", [("run", "x", "--model"), ("inspect",), ("verify",)])
def test_a_corrupt_file(command: tuple[str, ...], content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model\x1b[31m.gguf"
    file.write_bytes(content)
    result = invoke(*command, str(file))
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert "\x1b" not in result.err


@pytest.mark.parametrize("command", [("run", "x"), ("chat",)])
def test_a_model_without_tokenizer(command: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path, ignore=shutil.ignore_patterns("tokenizer*"), dirs_exist_ok=True)
    result = invoke(*command, "--model", str(tmp_path))
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"error: {tmp_path} has no tokenizer: ")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InputError, 2),
        (errors.CacheError, 2),
        (errors.CapacityError, 3),
        (MemoryError, 3),
        (errors.BusyError, 75),
        (errors.ClosedError, 1),
        (errors.NumericsError, 1),
        (errors.ConfigError, 1),
        (errors.CheckpointError, 1),
        (errors.TokenizerError, 1),
        (errors.BackendError, 1),
        (errors.GraphError, 1),
        (OSError, 1),
    ],
)
def test_the_exit_status_says_who_must_act(
    error: type[Exception], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(**arguments: object) -> None:
        raise error("the reason")

    monkeypatch.setattr("mistral_portable.cli.loading.load", failing)
    result = invoke("run", "x")
    assert (result.status, result.out, result.err) == (status, "", "error: the reason\n")


def test_help_lists_the_exit_statuses() -> None:
    words = " ".join(invoke("--help").out.split())
    assert "Exit status: 0 done; 1 failed; 2 wrong usage or input; 3 does not fit into memory; 75 busy" in words


def test_a_defect_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**arguments: object) -> None:
        raise ZeroDivisionError("no\nwhere")

    monkeypatch.setattr("mistral_portable.cli.loading.load", broken)
    result = invoke("run", "x")
    assert result.status == 1
    assert result.err == ("error: internal: ZeroDivisionError: no where; run again with --debug for the traceback\n")


@pytest.mark.parametrize("line", ["--debug inspect /no/such/model", "inspect /no/such/model --debug"])
def test_debug_lets_the_error_through(line: str) -> None:
    from mistral_portable.cli import main

    with pytest.raises(mp.MistralPortableError, match="/no/such/model"):
        main(line.split())


@pytest.mark.parametrize("line", ["", "--help", "run --help", "chat --help", "backends --help", "verify --help"])
def test_help(line: str) -> None:
    result = invoke(*line.split())
    assert (result.status, result.err) == (0, "")
    assert "Usage:" in result.out


def test_version() -> None:
    assert invoke("--version").out == f"mistral-portable {mp.__version__}\n"

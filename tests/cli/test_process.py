"""The command line as users start it."""

import gc
import json
import os
import shlex
import subprocess
import sys

import pytest
from cli.processes import COMMAND, invoke, run_process

GREEDY = ("--max-tokens", "12", "--temperature", "0")


def test_run_streams_the_prompt_and_its_continuation() -> None:
    shown = run_process("run", "Once upon a time", *GREEDY)
    assert (shown.status, shown.err) == (0, "")
    piped = invoke("run", "--json", *GREEDY, stdin=b"Once upon a time\n")
    assert (piped.status, piped.err) == (0, "")
    assert shown.out == f"Once upon a time{json.loads(piped.out)['text']}\n"


def test_chat_answers_each_piped_line() -> None:
    lines = b"Tom had a red ball. What color is Tom's ball?\nWhat did Tom have?\n"
    result = run_process("chat", "--temperature", "0", stdin=lines)
    assert (result.status, result.err) == (0, "")
    assert result.out == "Tom's ball is red.\nTom had a red ball.\n"


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    with subprocess.Popen(
        [*COMMAND, "run", "Once", "--ignore-eos", "--max-tokens", "30000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == b"Once "
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == b""


@pytest.mark.skipif(sys.platform == "win32", reason="no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, "backends"], stdout=full, stderr=subprocess.PIPE, timeout=60, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: [Errno 28]")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_who_leaves_is_no_error_to_speak_of(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen([*COMMAND, "backends"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait(60)) == (b"", 1)
    process.stderr.close()


def test_help_needs_no_heavy_library() -> None:
    code = (
        "import sys, mistral_portable\n"
        "assert not {'typer', 'rich'} & set(sys.modules)\n"
        "from mistral_portable.cli import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit as left: assert not left.code\n"
        "heavy = {'torch', 'mlx', 'jax', 'numba', 'mistral_common', 'gguf', 'huggingface_hub', 'hypothesis'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_off_a_terminal_nothing_is_drawn() -> None:
    code = (
        "import atexit, sys\n"
        "from mistral_portable.cli import main\n"
        "atexit.register(lambda: print('rich.progress' in sys.modules))\n"
        "main(['run', 'Once', '--max-tokens', '1'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("False\n"), done.stderr


@pytest.mark.parametrize("model", ["tiny", "no-such-model"])
def test_the_collector_of_cycles_works_after_a_start(model: str) -> None:
    before = gc.get_freeze_count()  # of pytest's own
    assert (invoke("run", "Once", "--model", model, "--max-tokens", "1").status == 0) == (model == "tiny")
    assert gc.isenabled()
    assert gc.get_freeze_count() <= before  # only a process that ends puts all objects out of its sight


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes the streams")
def test_closed_streams() -> None:
    line = shlex.join([*COMMAND, "backends"])
    done = subprocess.run(f"{line} >&- && {line} 2>&- && {line} <&-", shell=True, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"reference") == 2

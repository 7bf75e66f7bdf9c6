"""Ctrl-C and SIGTERM at any moment: exit status 130 and 143, and nothing on stderr."""

import signal
import subprocess
import sys

import pytest
from cli.processes import COMMAND, invoke

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

# Sends a signal to itself when a module is about to be imported, then goes on like `python -m mistral_portable`.
_AT_IMPORT = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored, and so its children
number, module = int(sys.argv.pop(1)), sys.argv.pop(1)
def watch(event, arguments):
    if event == "import" and arguments[0] == module:
        os.kill(os.getpid(), number)
sys.addaudithook(watch)
runpy.run_module("mistral_portable", run_name="__main__", alter_sys=True)
"""
# The signal comes where Python drops exceptions, and says so in a traceback.
_IN_FINALIZER = """
import os, signal, sys
from mistral_portable.cli.signals import Signals
signals, number = Signals(), int(sys.argv[1])
class Last:
    def __del__(self):
        os.kill(os.getpid(), number)
signal.signal(signal.SIGINT, signal.default_int_handler)
with signals.handled(for_good=True):
    signals.work()
    Last()
"""
SIGNALS = [signal.SIGINT, signal.SIGTERM]


def send(code: str, *arguments: str) -> tuple[int, bytes]:
    """The exit status of a program that sends itself a signal, and what it wrote to stderr."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "module",
    [
        "mistral_portable.cli.app",
        "typer",
        "mistral_portable.cli.rule",
        "numpy",
        "numpy.linalg",
        "llvmlite.binding",  # the backend, as the model is loaded
        "mistral_common.tokens.tokenizers.mistral",
    ],
)
def test_amid_an_import(module: str, number: signal.Signals) -> None:
    assert send(_AT_IMPORT, str(int(number)), module, "run", "Once", "--ignore-eos") == (128 + number, b"")


@pytest.mark.parametrize("number", SIGNALS)
def test_where_exceptions_are_dropped(number: signal.Signals) -> None:
    assert send(_IN_FINALIZER, str(int(number))) == (128 + number, b"")


@pytest.mark.parametrize("number", SIGNALS)
def test_amid_an_answer(number: signal.Signals) -> None:
    with subprocess.Popen(
        [*COMMAND, "run", "Once", "--ignore-eos", "--max-tokens", "30000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(12).startswith(b"Once")
        process.send_signal(number)
        process.stdout.read()
        assert (process.wait(60), process.stderr.read()) == (128 + number, b"")


def test_a_signal_that_is_ignored_stays_so() -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from mistral_portable.cli import main\n"
        "try: main()\n"
        "finally: assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
    )
    assert send(code, "--version") == (0, b"")


def test_a_program_that_calls_main_keeps_its_handlers() -> None:
    before = [signal.getsignal(number) for number in SIGNALS], sys.unraisablehook
    assert invoke("--version").status == 0
    assert ([signal.getsignal(number) for number in SIGNALS], sys.unraisablehook) == before


def test_names_of_the_package_are_imported_when_used() -> None:
    code = (
        "import sys, mistral_portable as mp\n"
        "assert 'numpy' not in sys.modules\n"
        "assert set(mp.__all__) <= set(dir(mp))\n"
        "from mistral_portable import *\n"
        "assert load is mp.load and callable(perplexity)\n"
        "try: mp.frob\n"
        "except AttributeError as error: assert 'frob' in str(error)\n"
        "else: raise SystemExit('no error')\n"
    )
    assert send(code) == (0, b"")

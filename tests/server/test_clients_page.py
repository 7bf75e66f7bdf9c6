"""The examples of docs/clients.md run as they stand there, and print the model's answer."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from serving import CHAT, PATIENCE, Running

import mistral_portable as mp

TEXT = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
NODE = Path(__file__).parent / "node"
ADDRESS = "http://127.0.0.1:8080"
BALLS = ("red", "blue")  # what the examples of schemas may print


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert all(ADDRESS in block for block in found)
    return found


def imported(program: str) -> str:
    """The name of the client that an example imports."""
    names = re.findall(r"^(?:from|import) ([\w.]+)", program, re.MULTILINE)
    name: str
    (name,) = set(names) - {"typing", "pydantic"}
    return name


@pytest.fixture
def answer(model: mp.Model) -> str:
    return model.chat(CHAT, temperature=0).text


@pytest.mark.parametrize("program", blocks("python"), ids=imported)
def test_python(server: Running, answer: str, program: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(imported(program))
    exec(compile(program.replace(ADDRESS, server.url), "docs/clients.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out.splitlines()
    assert printed
    assert set(printed) <= {answer, *BALLS}


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
@pytest.mark.skipif(not (NODE / "node_modules").exists(), reason="packages of Node: npm ci --prefix tests/server/node")
@pytest.mark.parametrize("program", blocks("js"))
def test_node(server: Running, answer: str, program: str) -> None:
    done = subprocess.run(
        ["node", "--input-type=module"],
        input=program.replace(ADDRESS, server.url),
        cwd=NODE,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.splitlines() == [answer, answer], done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", blocks("sh"))
def test_shell(server: Running, command: str) -> None:
    done = subprocess.run(
        ["bash", "-c", command.replace(ADDRESS, server.url)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert '"finish_reason": "stop"' in done.stdout, done.stderr

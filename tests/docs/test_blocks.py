"""Every fenced block of README.md and docs runs: here on the embedded model, in a test named here, or not, and why.

Placeholders (PATH, FILE, loras/sql, ...) are files in the folder in which a page's blocks run, one block after another.
"""

import json
import re
import shlex
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from adapter_files import peft_adapter
from cli.processes import invoke

import mistral_portable as mp

ROOT = Path(__file__).parents[2]
OURS = "python -m mistral_portable "

# (page, language): the test that runs those blocks.
TESTED: dict[tuple[str, str], str] = {
    ("docs/clients.md", "js"): "tests/server/test_clients_page.py",
    ("docs/clients.md", "python"): "tests/server/test_clients_page.py",
    ("docs/clients.md", "sh"): "tests/server/test_clients_page.py",
    ("docs/serving.md", "sh"): "tests/server/test_documentation.py",
    ("docs/structured-output.md", "python"): "tests/grammar/test_document.py",
    ("docs/tools.md", "python"): "tests/answers/test_document.py",
    ("docs/writing-a-backend.md", "python"): "tests/conformance/test_writing_a_backend.py",
    ("docs/writing-a-backend.md", "text"): "tests/conformance/test_writing_a_backend.py",
    ("docs/writing-a-backend.md", "toml"): "tests/conformance/test_writing_a_backend.py",
}

HUB = ("pull", "where", "rm")
SERVES = "serves until it is stopped: tests/server"
# (page, how a block or one of its commands begins): why it does not run.
NOT_RUN: dict[tuple[str, str], str] = {
    ("README.md", "pip install"): "installs: .ci/run runs it",
    ("README.md", "flowchart"): "a picture",
    ("README.md", OURS + "pull"): "needs the hub: tests/cli/test_hub.py",
    ("README.md", OURS + "serve"): SERVES,
    ("docs/adapters.md", OURS + "serve"): SERVES,
    ("docs/adapters.md", "curl"): "asks a server: tests/server/test_adapters.py",
    ("docs/architecture.md", "checkpoint"): "a picture",
    ("docs/benchmarks.md", "python -m tools.bench"): "takes minutes, on files of 1 to 4 GB, beside other engines",
    ("docs/clients.md", "pip install"): "installs",
    ("docs/clients.md", OURS + "serve"): SERVES,
    ("docs/clients.md", "OPENAI_API_BASE_URL"): "a program that needs gigabytes: Open WebUI",
    ("docs/clients.md", "docker"): "needs Docker",
    ("docs/clients.md", "name: Local"): "settings of another program: Continue",
    ("docs/clients.md", "export"): "an interactive program: aider",
    ("docs/clients.md", 'model = "any"'): "settings of another program: Codex",
    ("docs/clients.md", "codex"): "another program",
    ("docs/deploying.md", "python3 -m venv /opt"): "changes the machine",
    ("docs/deploying.md", "docker"): "needs Docker",
    ("docs/deploying.md", "llm.example.org"): "settings of another program: Caddy",
    ("docs/deploying.md", "location"): "settings of another program: nginx",
    ("docs/determinism.md", OURS + "verify"): "takes minutes: tests/cli/test_verify.py",
    **{("docs/formats.md", OURS + f"{word} owner"): "needs the hub: tests/cli/test_hub.py" for word in HUB},
    ("docs/formats.md", OURS + "convert --input_dir"): "tests/documented/test_pages_command_line.py, with its size",
    ("docs/mlx.md", "pip install"): "needs a Mac and a model of 7B",
    ("docs/quantization.md", "python -m tools"): "takes minutes",
    ("README.md", OURS + "batch IN OUT --ray"): "needs a cluster: tests/scaling/test_ray.py",
    ("docs/scaling.md", "pip install"): "installs",
    ("docs/scaling.md", OURS + "batch"): "starts Ray: tests/scaling/test_ray.py",
    ("docs/scaling.md", OURS + "serve"): SERVES,
    ("docs/serving.md", "pip install"): "installs",
    ("docs/serving.md", OURS + "serve"): SERVES,
    ("docs/torch.md", "torchrun"): "starts processes that share a model: tests/torch/test_parallel.py",
    ("docs/writing-a-backend.md", OURS + "verify"): "needs the toy installed: tests/conformance/test_toy_plugin.py",
}

# What stands for names that are no files.
STANDS_FOR = {"--backend NAME": "--backend reference", '"mistralai/Mistral-7B-Instruct-v0.3"': '"tiny"'}

# What the python blocks of a page take for granted.
GIVEN = {
    "docs/adapters.md": "import mistral_portable, mistral_portable as mp",
    "docs/drafts.md": "import mistral_portable as mp; prompt = 'Once upon a time'",
    "docs/formats.md": "import mistral_portable as mp",
    "docs/jax.md": """
import numpy as np
from mistral_portable.graph import build
from mistral_portable.weights import open_checkpoint
checkpoint = open_checkpoint("tiny")
graph = build(checkpoint.config)
tokens, kept = np.array([[1, 17], [1, 18]]), np.ones((2, 2), bool)
""",
    "docs/quantization.md": "import mistral_portable as mp; text = open('FILE').read()",
    "docs/writing-a-backend.md": """
from mistral_portable.boundary import ExecutorOptions
from mistral_portable_toy import BACKEND
""",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, from the root; the line of its fence; the language after the fence; the text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def is_python(self) -> bool:
        """Whether it is Python, by its fence or, without a language there, by its first word."""
        return self.language == "python" or (not self.language and self.text.startswith(("import ", "from ")))

    @property
    def is_layout(self) -> bool:
        """Whether it lists the files of a package."""
        return bool(re.match(r"mistral_portable_\w+/\n", self.text))

    @property
    def commands(self) -> list[str]:
        """The commands of a shell; what ends with a backslash or is followed by an indented line goes on there."""
        return re.sub(r"\\?\n +", " ", re.sub(r" +#.*", "", self.text)).strip().splitlines()

    @property
    def is_shell(self) -> bool:
        """Whether it has commands of this package."""
        return any(command.startswith(OURS) for command in self.commands)

    @property
    def tested(self) -> bool:
        """Whether a test of its own runs it."""
        return (self.page, self.language) in TESTED


def listed(page: str, text: str) -> bool:
    """Whether a block or a command is one of NOT_RUN."""
    return any(page == where and text.startswith(start) for where, start in NOT_RUN)


def fenced(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(str(page.relative_to(ROOT)), line, found[1], found[2])


BLOCKS = [block for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))) for block in fenced(page)]
HERE = [block for block in BLOCKS if not block.tested and (block.is_shell or not listed(block.page, block.text))]
SHELL = [block for block in HERE if not block.is_python and not block.is_layout]
PYTHON = sorted({block.page for block in HERE if block.is_python})


def where(block: Block) -> str:
    """The block's place, as editors write it."""
    return f"{block.page}:{block.line}"


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the blocks name."""
    folder = tmp_path_factory.mktemp("shelf")
    for name in ("PATH", "BASE", "MODEL", "SRC", "mistral-7b"):
        (folder / name).symlink_to(str(files("mistral_portable") / "assets/tiny"))
    for name in ("FILE", "some.txt", "stories.txt"):
        (folder / name).write_text("Once upon a time, there was a kind girl named Jane. Jane loved a black ring. " * 40)
    for number, name in enumerate(("loras/sql", "loras/poems", "ADAPTER", "OTHER", "adapter")):
        peft_adapter(folder / name, seed=number, factor=0.01)
    mp.convert("tiny", folder / "FOLDER", "raw")
    with tarfile.open(folder / "mistral-7B-v0.1.tar", "w") as tar:
        tar.add(folder / "FOLDER", "mistral-7B-v0.1")
    for file in (folder / "PATH").iterdir():
        if not (folder / "FOLDER" / file.name).exists():
            (folder / "FOLDER" / file.name).symlink_to(file.resolve())
    mp.convert("tiny", folder / "FOLDER" / "model.gguf", "gguf")
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    request = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (folder / "IN.jsonl").write_text(json.dumps(request) + "\n")
    (folder / "person.json").write_text('{"enum": ["Tom", "Ann"]}')
    (folder / "person.lark").write_text('start: "Tom" | "Ann"')
    return folder


@pytest.fixture
def here(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the shelf's files, and what a page writes."""
    for file in shelf.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def filled(text: str) -> str:
    """The text of a block with what stands for its names."""
    for name, value in STANDS_FOR.items():
        text = text.replace(name, value)
    return text


def plainest(text: str) -> str:
    """Return what is not optional in a synopsis, with the first of alternatives."""
    while (shorter := re.sub(r" \[[^\[\]]*\]( \.\.\.)?|\[=\w+\]", "", text)) != text:
        text = shorter
    return re.sub(r"(?<= )(\w+)(\|\w+)+", r"\1", text)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("block", SHELL, ids=where)
def test_commands(block: Block) -> None:
    for command in block.commands:
        if listed(block.page, command):
            continue
        assert command.startswith(OURS), f"{where(block)}: neither a command that runs here nor in NOT_RUN: {command}"
        words = shlex.split(plainest(filled(command.removeprefix(OURS))))
        arguments = list(takewhile(lambda word: word != "<", words))
        stdin = b"".join(Path(word).read_bytes() for word in words[len(arguments) + 1 :])
        done = invoke(*arguments, stdin=stdin)
        assert done.status == 0, f"{where(block)}: {command}: {done.err}"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("page", PYTHON)
def test_python(page: str) -> None:
    blocks = [block for block in HERE if block.page == page and block.is_python]
    if any("jax" in block.text for block in blocks):
        pytest.importorskip("jax")
    names: dict[str, Any] = {}
    exec(GIVEN.get(page, ""), names)
    for block in blocks:
        exec(compile("\n" * block.line + filled(block.text), page, "exec"), names)
    for value in names.values():
        if isinstance(value, mp.Model):
            value.close()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.is_layout], ids=where)
def test_files_of_a_layout_are_there(block: Block) -> None:
    name, _, text = block.text.partition("/\n")
    for file in re.findall(r"[\w/]+\.(?:py|ll)\b", text):
        assert list((ROOT / "backends" / name).rglob(file)), file


def test_other_tests_read_the_pages() -> None:
    for (page, language), test in TESTED.items():
        assert any(block.page == page and block.language == language for block in BLOCKS), page
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


def test_all_fences_are_found() -> None:
    for page in {block.page for block in BLOCKS}:
        fences = re.findall(r"^ *(?:```|~~~)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * sum(block.page == page for block in BLOCKS), page


def test_no_reason_without_a_block() -> None:
    texts = [(block.page, text) for block in BLOCKS for text in (block.text, *block.commands)]
    for page, start in NOT_RUN:
        assert any(page == where and text.startswith(start) for where, text in texts), (page, start)

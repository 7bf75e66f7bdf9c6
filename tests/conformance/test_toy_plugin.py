"""A third party's backend, installed with pip, is found like the project's own; the registry's other answers."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from mistral_portable_toy import BACKEND, ToyBackend

from mistral_portable.boundary import Availability, ExecutorOptions, Precision, Program, prepare, registry
from mistral_portable.cache import CacheSpec
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BackendError, CacheError
from mistral_portable.graph import build
from mistral_portable.testing import random_weights

TOY = Path(__file__).parents[1] / "toy_backend"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip installed the toy into."""
    target = tmp_path_factory.mktemp("site")
    # Offline: the build backend is the one that is installed, and nothing else is looked up.
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, TOY], check=True)
    return target


def _python(site: Path, *arguments: str) -> str:
    """Run Python in a new process with the toy installed, and return its output. No source tree is on its path."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=site, env=environment, check=True, capture_output=True, text=True).stdout


def test_command_line_lists_it(site: Path) -> None:
    rows = json.loads(_python(site, "-m", "mistral_portable", "backends", "--json"))
    (toy,) = (row for row in rows if row["name"] == "toy")
    assert toy["usable"]
    assert not toy["auto"]
    assert toy["reason"] == BACKEND.probe().reason


def test_registry_selects_it(site: Path) -> None:
    script = (
        "from mistral_portable.boundary.registry import select; b = select('toy'); print(b.name, type(b).__module__)"
    )
    assert _python(site, "-c", script).split() == ["toy", "mistral_portable_toy"]


def test_descriptor_imports_no_framework(site: Path) -> None:
    script = "import sys, mistral_portable_toy; print(*(name for name in sys.modules if 'portable_toy' in name))"
    assert _python(site, "-c", script).split() == ["mistral_portable_toy"]


def test_its_test_file_runs(site: Path, tmp_path: Path) -> None:
    test = tmp_path / "test_toy.py"
    test.write_text(Path(__file__).with_name("test_toy.py").read_text())
    arguments = ["-q", "-p", "no:cacheprovider", "-k", "op.add", str(test)]
    assert "1 passed, " in _python(site, "-m", "pytest", *arguments)


def test_the_core_refuses_what_the_toy_does_not_declare() -> None:
    with pytest.raises(BackendError, match=r"'toy', dtype='bfloat16': it computes in float32; choose"):
        _program(ExecutorOptions(dtype="bfloat16"))
    with pytest.raises(BackendError, match=r"'toy', threads=4: it has no such choice; leave the option out"):
        _program(ExecutorOptions(threads=4))
    with pytest.raises(BackendError, match="'toy', kv_cache='q8_0'"):
        _program(ExecutorOptions(kv_cache="q8_0"))
    assert _program(ExecutorOptions(kv_cache="float32")).precision == Precision("float32")


def test_toy_refuses_pages_of_another_model() -> None:
    program = _program()
    state = dict(program.read_pages(0, []))
    program.write_pages(0, [], state)
    with pytest.raises(CacheError, match="does not fit"):
        program.write_pages(0, [0], state)
    state.pop("keys.0")
    with pytest.raises(CacheError, match="not the layers"):
        program.write_pages(0, [], state)


def _program(options: ExecutorOptions | None = None) -> Program:
    config = MistralConfig(
        vocab_size=5,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=2,
    )
    graph = build(config)
    cache = CacheSpec.from_config(config, max_context=9, page_size=BACKEND.capabilities.page_size)
    return prepare(BACKEND, graph, random_weights(graph, seed=0), cache, options or ExecutorOptions())


class _Scored(ToyBackend):
    def __init__(self, score: int) -> None:
        self.score = score

    def probe(self) -> Availability:
        return Availability(self.score, f"score {self.score}")


FAST, ABSENT = _Scored(1000), _Scored(0)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three installed plugins: a fast one, one without its hardware, one whose import raises."""
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('libcudart.so: no such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "plugins_of_the_test", sys.modules[__name__])
    values = {
        "fast": "plugins_of_the_test:FAST",
        "absent": "plugins_of_the_test:ABSENT",
        "broken": "broken_plugin:BACKEND",
    }
    entries = [EntryPoint(name, value, registry.GROUP) for name, value in values.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == registry.GROUP else [])


@pytest.mark.usefixtures("plugins")
def test_broken_plugin_is_a_row_with_a_reason() -> None:
    rows = {candidate.name: candidate for candidate in registry.candidates()}
    assert rows["broken"].backend is None
    assert rows["broken"].availability == Availability(0, "its import failed: RuntimeError: libcudart.so: no such file")
    assert rows["fast"].backend is FAST
    assert rows["reference"].availability.score == 1
    with pytest.raises(BackendError, match=r"'broken' cannot run here: its import failed: RuntimeError"):
        registry.select("broken")


@pytest.mark.usefixtures("plugins")
def test_rows_are_ordered_by_score() -> None:
    assert [candidate.name for candidate in registry.candidates()] == [
        *["fast", "reference"],
        *["absent", "broken", "jax", "mlx", "numba", "torch"],  # score 0, by name
    ]


@pytest.mark.usefixtures("plugins")
def test_auto_takes_the_best_score() -> None:
    assert registry.select() is FAST
    assert registry.select("auto") is FAST
    assert registry.select("reference").name == "reference"


@pytest.mark.usefixtures("plugins")
def test_unusable_backend_gives_its_reason() -> None:
    with pytest.raises(BackendError, match=r"'absent' cannot run here: score 0"):
        registry.select("absent")


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("numba", "pip install --upgrade mistral-portable"),
        ("jax", "pip install --upgrade 'mistral-portable[jax]'"),
        ("mlx", "pip install --upgrade 'mistral-portable[mlx]'"),
        ("torch", "pip install --upgrade 'mistral-portable[torch]'"),
    ],
)
def test_missing_backend_says_how_to_install_it(name: str, command: str) -> None:
    with pytest.raises(BackendError) as caught:
        registry.select(name)
    assert str(caught.value) == f"backend {name!r} cannot run here: not installed: {command}"


@pytest.mark.usefixtures("plugins")
def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(
        BackendError, match=r"'tpu' is unknown: choose one of auto, fast, reference, absent, broken, jax"
    ):
        registry.select("tpu")

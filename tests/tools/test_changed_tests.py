"""A change finds its tests: by imports, by conftest.py, by the names of documents and of backends."""

import subprocess
from pathlib import Path

import pytest

from tools.changed_tests import changed_files, needed_tests

FILES = {
    "mistral_portable/__init__.py": "from mistral_portable.engine import load\n",
    "mistral_portable/cache.py": "",
    "mistral_portable/engine.py": "def load():\n    from mistral_portable import cache\n",
    "mistral_portable/sampler.py": "",
    "mistral_portable/oracle.py": "",
    "mistral_portable/registry.py": 'ORACLE = "mistral_portable.oracle:BACKEND"\n',
    "tests/core/test_registry.py": "from mistral_portable.registry import ORACLE\n",
    "backends/mistral_portable_toast/__init__.py": "import mistral_portable.cache\n",
    "tests/helpers.py": "import mistral_portable as mp\n",
    "tests/conftest.py": "",
    "tests/core/test_cache.py": "from mistral_portable.cache import Cache\n",
    "tests/core/test_engine.py": "from helpers import run\n",
    "tests/core/test_sampler.py": "from mistral_portable.sampler import sample\n",
    "tests/toast/test_toast.py": "from mistral_portable_toast import BACKEND\n",
    "tests/cli/test_run.py": 'run("--backend", "toast")\nPath("README.md")\n',
}
ALL = sorted(name for name in FILES if "/test_" in name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        (["mistral_portable/sampler.py"], ["core/test_sampler"]),
        (["mistral_portable/cache.py"], ["core/test_cache", "core/test_engine", "toast/test_toast"]),
        (["mistral_portable/engine.py"], ["core/test_engine"]),
        (["backends/mistral_portable_toast/__init__.py"], ["cli/test_run", "toast/test_toast"]),
        (["README.md", "docs/other.md"], ["cli/test_run"]),
        (["tests/core/test_sampler.py", "mistral_portable/gone.py"], ["core/test_sampler"]),
        (["mistral_portable/oracle.py"], ["core/test_registry"]),
        ([], []),
    ],
)
def test_needed_tests(root: Path, changed: list[str], tests: list[str]) -> None:
    assert needed_tests(root, changed) == [f"tests/{name}.py" for name in tests]


def test_settings_of_the_project_count_for_all(root: Path) -> None:
    assert needed_tests(root, ["pyproject.toml"]) == ALL


def test_a_conftest_counts_for_its_folder(root: Path) -> None:
    assert needed_tests(root, ["tests/conftest.py"]) == ALL


def test_changed_files_are_edited_and_untracked_ones(root: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=root, check=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    assert changed_files(root, "HEAD") == []
    (root / "mistral_portable/cache.py").write_text("x = 1\n")
    (root / "new.py").write_text("")
    assert changed_files(root, "HEAD") == ["mistral_portable/cache.py", "new.py"]

"""The hub's cache: what is listed is what is there, and what is removed is nothing else."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from weights.cache_folder import write_cache

from mistral_portable.errors import CheckpointError
from mistral_portable.weights.hub_cache import read_cache, remove

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")

NAMES = ["config.json", "model.safetensors", "a.gguf", "b.gguf", "Q8/m-00001-of-00002.gguf", "Q8/m-00002-of-00002.gguf"]
COMMITS = [digit * 40 for digit in "123"]
Repositories = dict[str, dict[str, dict[str, bytes]]]

# Few contents, so that files share them.
revisions = st.dictionaries(st.sampled_from(NAMES), st.binary(min_size=1, max_size=2), min_size=1)
repositories = st.dictionaries(
    st.sampled_from(["some/a", "some/b"]), st.dictionaries(st.sampled_from(COMMITS), revisions, min_size=1)
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """All files that the snapshots of a cache lead to."""
    for path in sorted(folder.glob("*/snapshots/**/*")):
        if path.is_symlink():
            yield str(path.relative_to(folder)), path.read_bytes()


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/blobs/*"))


@given(
    repositories,
    st.sampled_from(["some/a", "some/b"]),
    st.sampled_from([None, "a.gguf", "Q8/m-00002-of-00002.gguf"]),
    st.sampled_from([None, "main", COMMITS[1], COMMITS[1][:7]]),
)
def test_nothing_else_is_removed(held: Repositories, repository: str, file: str | None, revision: str | None) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name).resolve()
        patch.setattr(constants, "HF_HUB_CACHE", name)
        for own, commits in held.items():
            write_cache(folder, own, commits, {"main": min(commits)})
        before, size = dict(contents(folder)), on_disk(folder)
        files = {None: {*NAMES}, "a.gguf": {"a.gguf"}}.get(file, {name for name in NAMES if "Q8" in name})
        main = min(held.get(repository, [""]))
        wanted = {None: {*COMMITS}, "main": {main}}.get(revision, {COMMITS[1]})
        begins = [f"models--{repository.replace('/', '--')}/snapshots/{commit}/" for commit in wanted]
        gone = {path for path in before for begin in begins if path in {begin + own for own in files}}
        removal = read_cache().removal(repository, file, revision)
        assert (removal is None) == (not gone)
        if removal is None:
            return
        remove(removal)
        after = dict(contents(folder))
        left = {path: data for path, data in before.items() if path not in gone}
        # With its last model a repository goes, its settings included.
        lost = {path.split("/")[0] for path in left.keys() - after.keys()}
        assert after == {path: data for path, data in left.items() if path.split("/")[0] not in lost}
        assert all(not path.endswith(("gguf", "safetensors")) for path in left.keys() - after.keys())
        freed = size - on_disk(folder)
        assert freed <= removal.expected_freed_size <= freed + 40  # `refs/main` counts with the repository
        assert read_cache().find(repository, file, revision) == []
        assert not read_cache().faults


def test_models_by_the_names_that_open_them(cache: Path) -> None:
    files = dict.fromkeys(NAMES, b"x")
    write_cache(cache, "some/all", {COMMITS[0]: files, COMMITS[1]: {"a.gguf": b"old"}}, {"main": COMMITS[0]})
    write_cache(
        cache, "some/plain", {COMMITS[2]: {"config.json": b"{}", "model.safetensors": b"12345"}}, {"v1": "3" * 40}
    )
    found = {(model.name, model.revision): model.size for model in read_cache().models}
    assert found == {
        ("some/all", "main"): 1,
        ("some/all:Q8/m-00001-of-00002.gguf", "main"): 1,
        ("some/all:a.gguf", "main"): 1,
        ("some/all:a.gguf", COMMITS[1]): 3,
        ("some/all:b.gguf", "main"): 1,
        ("some/plain", "v1"): 7,
    }


def test_a_part_of_none_is_a_file(cache: Path) -> None:
    write_cache(cache, "some/odd", {COMMITS[0]: {"m-00001-of-00000.gguf": b"x"}}, {"main": COMMITS[0]})
    (model,) = read_cache().models
    assert (model.file, model.size) == ("m-00001-of-00000.gguf", 1)
    assert read_cache().find("some/odd", "m-00001-of-00000.gguf", None) == [model]


def test_what_cannot_be_read_is_said_and_can_be_removed(cache: Path) -> None:
    broken = cache / "models--some--broken" / "blobs"
    broken.mkdir(parents=True)
    (broken / "0123.incomplete").write_bytes(b"12345")
    found = read_cache()
    assert found.models == []
    assert "models--some--broken" in found.faults[0]
    assert found.removal("some/broken", "a.gguf", None) is None
    removal = found.removal("some/broken", None, None)
    assert removal is not None
    assert removal.expected_freed_size == 5
    remove(removal)
    assert [*cache.iterdir()] == []


def test_no_cache_and_a_file_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert (read_cache().models, read_cache().removal("some/a", None, None)) == ((), None)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="the hub's cache cannot be read"):
        read_cache()

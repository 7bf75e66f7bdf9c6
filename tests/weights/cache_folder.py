"""A hub's cache on the disk, laid out as huggingface_hub does."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

__all__ = ["write_cache"]


def write_cache(
    folder: Path, repository: str, revisions: Mapping[str, Mapping[str, bytes]], refs: Mapping[str, str]
) -> None:
    """Write a repository. revisions: the files of each commit. refs: the commits of branches and tags."""
    own = folder / f"models--{repository.replace('/', '--')}"
    for name, commit in refs.items():
        (own / "refs").mkdir(parents=True, exist_ok=True)
        (own / "refs" / name).write_text(commit)
    for commit, files in revisions.items():
        (own / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            blob, link = own / "blobs" / sha256(content).hexdigest(), own / "snapshots" / commit / name
            for path in (blob, link):
                path.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link.symlink_to(Path(*[".."] * len(link.relative_to(own).parent.parts)) / "blobs" / blob.name)

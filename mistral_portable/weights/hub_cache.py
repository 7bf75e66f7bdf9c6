"""The hub's cache: what it holds, by the names under which models are opened, and how it is removed.

`huggingface_hub` keeps a folder for each repository, in it one for each revision, with links to the contents of files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mistral_portable.errors import CheckpointError
from mistral_portable.weights.gguf import part_names
from mistral_portable.weights.hf_files import weight_names
from mistral_portable.weights.raw import is_consolidated

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, CachedRepoInfo, CachedRevisionInfo, DeleteCacheStrategy, HFCacheInfo

__all__ = ["CachedModel", "HubCache", "read_cache", "remove"]

_DIGITS = 7  # at least, of a commit


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache, or as much of one as is there: a repository's checkpoint, or one of its GGUF files.

    repository, file: its name, as `open_checkpoint` takes it, is "repository" or "repository:file". path: the folder or
    the file that is opened then. revision: the branch or tag whose commit this is, or the commit itself. modified: when
    it was downloaded, in the words of the hub's library ("2 days ago"). files: those that are this model's.
    """

    repository: str
    file: str | None
    path: Path
    revision: str
    commit: str
    modified: str
    files: "Sequence[CachedFileInfo]" = field(repr=False)

    @property
    def name(self) -> str:
        """The name that `open_checkpoint` takes."""
        return f"{self.repository}:{self.file}" if self.file else self.repository

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum({file.blob_path: file.size_on_disk for file in self.files}.values())

    def is_at(self, revision: str | None) -> bool:
        """Whether this is a model at a branch, a tag or a commit, of which 7 digits are enough; None: at any."""
        if revision in (None, self.revision):
            return True
        return revision is not None and len(revision) >= _DIGITS and self.commit.startswith(revision)


@dataclass(frozen=True)
class HubCache:
    """The models in the cache.

    folder: where it is. models: in order of their names. others: sizes of the data sets and spaces, in bytes. faults: a
    line for each thing that cannot be read.
    """

    folder: Path
    models: Sequence[CachedModel]
    others: Sequence[int]
    faults: Sequence[str]
    scan: "HFCacheInfo | None" = field(repr=False)
    """The hub's own description; None: there is no cache yet."""

    def find(self, repository: str, file: str | None, revision: str | None) -> list[CachedModel]:
        """The models of a name, at a revision or at any. file: a GGUF file, or any part of a split one."""
        own = file and _first(file)
        return [m for m in self.models if (m.repository, m.file) == (repository, own) and m.is_at(revision)]

    def removal(self, repository: str, file: str | None, revision: str | None) -> "DeleteCacheStrategy | None":
        """Prepare to remove a repository, or one GGUF file of it, at a revision or at all; None: it is not there.

        The result's `expected_freed_size` says how many bytes. Where nothing is left the repository goes
        with all that the cache has of it, such as unfinished downloads.
        """
        every = [model for model in self.models if model.repository == repository]
        chosen = self.find(repository, file, revision) if file else [m for m in every if m.is_at(revision)]
        folder = self.folder / f"models--{repository.replace('/', '--')}"
        if chosen == every and (every or not (file or revision)):
            return _of_folder(folder) if folder.is_dir() else None
        if self.scan is None or not chosen:
            return None
        own = frozenset(held for held in self.scan.repos if held.repo_path == folder)
        if file is None:  # a copy of a repository has the same commits, which are not meant
            return replace(self.scan, repos=own).delete_revisions(*{model.commit for model in chosen})
        links = [link for held in own for at in held.revisions for link in at.files]
        return _of_files([link for model in chosen for link in model.files], links)


def read_cache() -> HubCache:
    """Read the cache; without network. Raises CheckpointError if there is a file in its place."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    folder = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    try:
        scan = scan_cache_dir(folder)
    except CacheNotFound:
        return HubCache(folder, (), (), (), None)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the hub's cache cannot be read: {error}") from error
    repositories = [repository for repository in scan.repos if repository.repo_type == "model"]
    models = [model for own in repositories for revision in own.revisions for model in _models(own, revision)]
    models.sort(key=lambda model: (model.repository, model.file or "", model.revision))
    others = [repository.size_on_disk for repository in scan.repos if repository.repo_type != "model"]
    return HubCache(folder, models, others, [" ".join(str(fault).split()) for fault in scan.warnings], scan)


def _models(repository: "CachedRepoInfo", revision: "CachedRevisionInfo") -> Iterator[CachedModel]:
    """The models of a revision: each GGUF file, and the other files, if they are a checkpoint or there is no GGUF."""
    refs = sorted(revision.refs, key=lambda ref: (ref != "main", ref))
    files = {file.file_path.relative_to(revision.snapshot_path).as_posix(): file for file in revision.files}

    def model(file: str | None, names: Sequence[str]) -> CachedModel:
        return CachedModel(
            repository.repo_id,
            file,
            revision.snapshot_path / file if file else revision.snapshot_path,
            refs[0] if refs else revision.commit_hash,
            revision.commit_hash,
            revision.last_modified_str,
            [files[name] for name in names],
        )

    others = [name for name in files if not name.endswith(".gguf")]
    ggufs = {_first(name) for name in files if name.endswith(".gguf")}
    if not ggufs or weight_names(others) or any(map(is_consolidated, others)):
        yield model(None, others)
    for file in ggufs:
        yield model(file, [part for part in part_names(file) or [file] if part in files])


def _first(file: str) -> str:
    """The first part of a split GGUF file, or the file itself."""
    return next(iter(part_names(file)), file)


def _of_folder(folder: Path) -> "DeleteCacheStrategy":
    from huggingface_hub import DeleteCacheStrategy

    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return DeleteCacheStrategy(size, frozenset(), frozenset(), frozenset([folder]), frozenset())


def _of_files(files: "Sequence[CachedFileInfo]", every: "Sequence[CachedFileInfo]") -> "DeleteCacheStrategy":
    """Prepare to remove links, and the contents that none of the other links leads to."""
    from huggingface_hub import DeleteCacheStrategy

    gone = {file.file_path for file in files}
    kept = {file.blob_path for file in every if file.file_path not in gone}
    contents = {file.blob_path: file.size_on_disk for file in files if file.blob_path not in kept}
    size = sum(contents.values())
    # The library unlinks its "snapshots" first, whether they are folders or files.
    return DeleteCacheStrategy(size, frozenset(contents.keys() - gone), frozenset(), frozenset(), frozenset(gone))


def remove(removal: "DeleteCacheStrategy") -> None:
    """Remove files. Raises CheckpointError if one is still there, as without the permission."""
    removal.execute()
    left = [path for path in sorted(removal.repos | removal.snapshots | removal.blobs) if path.exists()]
    if left:
        raise CheckpointError(f"{left[0]}: could not be removed: check the permissions")

"""Checks downloaded files by hash: the hub's cache names each file by the hash that the hub has for it."""

import re
from collections.abc import Callable
from hashlib import sha1, sha256
from pathlib import Path

from mistral_portable.errors import CheckpointError

__all__ = ["check_downloads"]

_PIECE = 2**24  # bytes read at a time


def check_downloads(snapshot: Path, since: float, progress: Callable[[str, int, int], None] | None) -> None:
    """Compare the hashes of a snapshot's files that were written after `since`, in seconds since the epoch.

    The files of a snapshot are links to files named by their hash: SHA-256 for large files, for others git's SHA-1 of
    "blob SIZE\\0" and the content. Without symbolic links the cache keeps no hashes, and nothing is checked.

    Raises CheckpointError if a hash differs; the file is removed, so that it is downloaded again.
    """
    files = sorted(path for path in snapshot.rglob("*") if path.is_symlink() and path.is_file())
    new = {path.resolve(): path for path in files if path.stat().st_mtime >= since}
    total, done = sum(file.stat().st_size for file in new), 0
    for file, path in new.items():
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.name):
            continue
        digest = sha256() if len(file.name) == 64 else sha1(f"blob {file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while piece := stream.read(_PIECE):
                digest.update(piece)
                done += len(piece)
                if progress is not None:
                    progress("checking", done, total)
        if digest.hexdigest() != file.name:
            path.unlink()
            file.unlink()
            raise CheckpointError(
                f"{path.name}: the download is damaged, its hash is {digest.hexdigest()[:12]}.. and not "
                f"{file.name[:12]}..; it has been removed: try again"
            )

"""Whether downloaded files are what the hub has: each lies in the cache under the hash that the hub has given it."""

import re
from collections.abc import Callable
from hashlib import sha1, sha256
from pathlib import Path

from mistral_portable.errors import CheckpointError

__all__ = ["check_downloads"]

_PIECE = 2**24  # bytes read at a time


def check_downloads(snapshot: Path, since: float, progress: Callable[[str, int, int], None] | None) -> None:
    """Hash the files of a snapshot, links to files that are named by their hash, that were written after `since`.

    Large files have SHA-256, others git's SHA-1, of "blob SIZE\\0" and the content. Where the system has no links the
    cache does not keep the hashes, and nothing is checked. since: seconds since the epoch.

    Raises CheckpointError if one differs; it is removed, so that it is downloaded again.
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
                f"{path.name}: what was downloaded is damaged, its hash is {digest.hexdigest()[:12]}.. and not "
                f"{file.name[:12]}..; it has been removed: try again"
            )

"""Recognizes git-lfs pointers: the short texts that a clone without git-lfs has in place of large files."""

import re

__all__ = ["pointer"]

_POINTER = re.compile(rb"version https://(?:git-lfs|hawser)\.github\.com/spec/v\d+\n", re.ASCII)
_SIZE = re.compile(rb"\nsize (\d{1,18})\n", re.ASCII)
_LONGEST = 1024  # bytes, by git-lfs's specification


def pointer(content: bytes) -> str | None:
    """Words for an error about a file that begins with these bytes: what it is and what to run; None if no pointer.

    Source of the format: git-lfs, docs/spec.md.
    """
    if not _POINTER.match(content):
        return None
    size = _SIZE.search(content[:_LONGEST])
    whole = f"the file itself ({int(size[1]):,} bytes)" if size else "the file itself"
    return f"is a git-lfs pointer, not {whole}; run `git lfs install && git lfs pull` in its folder"

"""Reading archives in place: members are views of the mapped file and are never extracted.

Tar: a raw checkpoint, as Mistral's first releases. Zip: the tensors of a torch file.
"""

import io
import struct
import tarfile
import zipfile
from pathlib import PurePosixPath

from mistral_portable.weights.source import Buffer

__all__ = ["is_tar", "is_zip", "tar_members", "zip_members"]

_MAX_READ = 2**20  # bytes of a directory or header: the libraries read nothing larger at once
_MAX_MEMBERS = 1000  # in a tar
_LOCAL_HEADER = 30
_LENGTHS = struct.Struct("<HH")  # at byte 26: lengths of the name and of the extra field behind the local header


def is_tar(data: Buffer) -> bool:
    """Whether it begins with a POSIX or GNU tar header."""
    return bytes(data[257:262]) == b"ustar"


def is_zip(data: Buffer) -> bool:
    """Whether it begins with a zip archive's first member."""
    return bytes(data[:4]) == b"PK\x03\x04"


def tar_members(data: Buffer) -> dict[str, memoryview]:
    """The files of an uncompressed tar, by path.

    Raises ValueError for truncated or damaged archives, links, devices, sparse files, paths that leave the archive's
    folder, and members stored twice.
    """
    view, members, at = memoryview(data), dict[str, memoryview](), -1
    try:
        with tarfile.open(fileobj=_Bounded(view), mode="r:") as archive:
            for count, member in enumerate(archive):
                # Damaged sizes can send the library back to an earlier member.
                if member.offset <= at or member.size < 0 or count >= _MAX_MEMBERS:
                    raise ValueError(f"it is damaged, or has more than {_MAX_MEMBERS} members")
                at = member.offset
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise ValueError(f"the member {member.name!r:.100} has a path outside of it")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise ValueError(f"the member {member.name!r:.100} is not a regular file")
                if str(path) in members:
                    raise ValueError(f"the member {member.name!r:.100} is stored twice")
                if member.offset_data + member.size > len(view):
                    raise ValueError(f"it is truncated: {member.name!r:.100} goes beyond its {len(view)} bytes")
                members[str(path)] = view[member.offset_data : member.offset_data + member.size]
    except (tarfile.TarError, OSError, OverflowError, IndexError, RecursionError) as error:
        raise ValueError(f"not a valid tar: {error}") from error
    return members


def zip_members(data: Buffer) -> dict[str, memoryview]:
    """The members of a zip, by path.

    Raises ValueError for truncated or damaged archives, members stored twice, and compressed members: so no member is
    larger than the archive.
    """
    view, members = memoryview(data), dict[str, memoryview]()
    try:
        with zipfile.ZipFile(_Bounded(view)) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise ValueError(f"the member {info.filename!r:.100} is compressed")
                if info.filename in members:
                    raise ValueError(f"the member {info.filename!r:.100} is stored twice")
                members[info.filename] = _zip_member(view, info)
    except (zipfile.BadZipFile, NotImplementedError, OSError, OverflowError, struct.error) as error:
        raise ValueError(f"not a valid zip archive: {error}") from error
    return members


def _zip_member(view: memoryview, info: zipfile.ZipInfo) -> memoryview:
    header = view[max(info.header_offset, 0) :][:_LOCAL_HEADER]
    if len(header) < _LOCAL_HEADER or not is_zip(header):
        raise ValueError(f"the member {info.filename!r:.100} has no header")
    begin = info.header_offset + _LOCAL_HEADER + sum(_LENGTHS.unpack(header[26:30]))
    if begin + info.file_size > len(view):
        raise ValueError(f"it is truncated: {info.filename!r:.100} goes beyond its {len(view)} bytes")
    return view[begin : begin + info.file_size]


class _Bounded(io.RawIOBase):
    """A read-only file over a buffer; reading more than _MAX_READ bytes, as hostile headers request, raises OSError."""

    def __init__(self, view: memoryview) -> None:
        super().__init__()
        self._view, self._at = view, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + (0, self._at, len(self._view))[whence]
        if at < 0:
            raise OSError("a header points before the file")
        self._at = at
        return at

    def read(self, size: int = -1) -> bytes:
        left = max(len(self._view) - self._at, 0)
        size = left if size < 0 else min(size, left)
        if size > _MAX_READ:
            raise OSError(f"a header of {size} bytes; at most {_MAX_READ} are accepted")
        content = bytes(self._view[self._at : self._at + size])
        self._at += size
        return content

"""Session files: a sequence with its keys and values, for another process to go on from.

A file is safetensors: `tokens`, int32 [T], and GROUP/NAME for each array of a SavedLane. Its metadata has one key, so
that the file's first bytes tell what it is, and the value "SHA256 JSON". The JSON object holds the settings of the
model, the lane's integers, the adapters, and the messages of a chat if there are any; the digest is that of the JSON
and all arrays. It finds damage, not forgery: whoever makes a file can make its digest. So the rest is checked as if
there were none.
"""

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import SavedLane
from mistral_portable.errors import CacheError, InputError

__all__ = ["Session", "read_messages", "read_session", "write_session"]

Settings = Mapping[str, str]
"""All that keys and values depend on beside the tokens: `model` (the fingerprint), `backend`, `dtype` and so on."""

_KEY = "mistral_portable.session"
_BEGIN = f'{{"__metadata__":{{"{_KEY}":"'.encode()  # behind the 8 bytes of the header's size
_VERSION = 3  # 1, 2: other layouts of numba's pages
_TYPES = ("F64", "F32", "F16", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")  # those that NumPy has


@dataclass(frozen=True)
class Session:
    """tokens: ids of the sequence, as many as the lane holds. messages: the chat that they are of, if it is kept.
    adapters: fingerprints and weights of those that the text was read with."""

    tokens: Sequence[int]
    lane: SavedLane
    messages: Sequence[Mapping[str, Any]] | None = None
    adapters: Sequence[tuple[str, float]] = ()


def write_session(path: Path, session: Session, settings: Settings) -> None:
    """Write a session. Until it is on the disk as a whole, the file stays as it was.

    Raises InputError if the file cannot be written, or if there is one that is no session.
    """
    from safetensors import SafetensorError  # slow to import
    from safetensors.numpy import save_file

    arrays: dict[str, NDArray[Any]] = {"tokens": np.array(session.tokens, np.int32)}
    for group, state in enumerate(session.lane.groups):
        arrays |= {f"{group}/{name}": np.ascontiguousarray(array) for name, array in state.items()}
    try:
        text = json.dumps(
            {
                "version": _VERSION,
                "settings": dict(settings),
                "lane": dict(session.lane.integers),
                "messages": session.messages,
                "adapters": [list(adapter) for adapter in session.adapters],
            }
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: these messages cannot be written as JSON: {error}") from error
    try:
        target = path.resolve()  # what a link points to is replaced, not the link
        if target.exists():
            _require_session(path)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            save_file(arrays, partial, {_KEY: f"{_digest(text, arrays)} {text}"})
            with partial.open("r+b") as file:
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: links in a circle
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be written: {_reason(error)}; choose another file") from error


def read_session(path: Path, settings: Settings, vocab_size: int) -> Session:
    """Read a session. Nothing of the file is executed, and no more memory is taken than it has bytes.

    Whether the lane fits the model is for `Core.load` to check.

    Raises InputError if there is no such file or it is no session; CacheError if it is one of other settings, or
    damaged.
    """
    with _opened(path) as (file, digest, text):
        content = _content(text)
        _require_alike(path, content["settings"], settings)
        arrays = {name: _array(file, name) for name in sorted(file.keys())}
        if _digest(text, arrays) != digest:
            raise ValueError("its digest is of other content")
        tokens = arrays.pop("tokens", np.zeros(0))
        if tokens.dtype != np.int32 or tokens.ndim != 1 or not tokens.size:
            raise ValueError("it has no tokens")
        if not 0 <= tokens.min() <= tokens.max() < vocab_size:
            raise ValueError(f"it has tokens outside of the vocabulary of {vocab_size}")
        for name, value in content["lane"].items():
            if type(value) is not (str if name == "model" else int):
                raise ValueError(f"{name!r:.40} is no integer")
        if content["lane"].get("length") != tokens.size:
            raise ValueError(f"it has {tokens.size} tokens for a lane of another length")
        lane = SavedLane(content["lane"], _by_group(arrays))
        return Session(tokens.tolist(), lane, content["messages"], _adapters(content.get("adapters", [])))


def read_messages(path: Path) -> list[Any] | None:
    """Read the messages of a chat's session, unchecked; None if it is not a chat's. Raises the errors of
    `read_session`."""
    with _opened(path) as (_, _, text):
        messages: list[Any] | None = _content(text)["messages"]
        return messages


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, str, str]]:
    """The open file, its digest and its JSON. ValueErrors of the block are damage."""
    from safetensors import SafetensorError, safe_open  # slow to import

    _require_session(path)
    try:
        with safe_open(path, "numpy") as file:
            digest, _, text = file.metadata()[_KEY].partition(" ")
            yield file, digest, text
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError, SafetensorError) as error:
        raise CacheError(f"{path}: a damaged session: {_reason(error)}; delete it, or name another file") from error


def _require_session(path: Path) -> None:
    """Raise InputError unless the file begins as a session does, even if it is damaged later on."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{path} is not a file: name another one for the session")
            begin = file.read(8 + len(_BEGIN))
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder: name a file for the session") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise InputError(f"{path}: cannot read the session: {_reason(error)}") from error
    if begin[8:] != _BEGIN:
        raise InputError(f"{path} is no session of mistral_portable, and is left as it is: name another file")


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other side of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _content(text: str) -> dict[str, Any]:
    """The JSON object, with a mapping for `settings` and `lane` and a list or None for `messages`."""
    content = json.loads(text)
    match content:
        case {"version": int(version)} if version != _VERSION:
            raise ValueError(f"its format is version {version:.0f}, and this program reads {_VERSION}")
        case {"settings": dict(), "lane": dict(), "messages": list() | None}:
            return dict(content)
    raise ValueError("its JSON is not that of a session")


def _adapters(found: Any) -> list[tuple[str, float]]:
    """Fingerprints and weights; files of before there were adapters have none."""
    match found:
        case list() if all(isinstance(each, list) and list(map(type, each)) == [str, float] for each in found):
            return [(each[0], each[1]) for each in found]
    raise ValueError("its adapters are no list of names and weights")


def _require_alike(path: Path, found: Mapping[str, Any], wanted: Settings) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            if name == "model":
                what = "it is of other weights, or of another window"
            else:
                what = f"it is of {name}={found.get(name)!r:.40}, and this is {name}={value!r}"
            raise CacheError(f"{path}: {what}; load the model that it was saved with, or name another file")


def _array(file: Any, name: str) -> NDArray[Any]:
    """A copy of a tensor. Raises ValueError for types that NumPy has not."""
    dtype = file.get_slice(name).get_dtype()
    if dtype not in _TYPES:
        raise ValueError(f"it holds {dtype} numbers")
    array: NDArray[Any] = file.get_tensor(name)
    return array


def _by_group(arrays: Mapping[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], ...]:
    """The arrays of each layer group, by their names in a LaneState."""
    groups: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in arrays.items():
        group, _, own = name.partition("/")
        groups.setdefault(group, {})[own] = array
    if set(groups) != {str(group) for group in range(len(groups))}:
        raise ValueError("its arrays are not those of layer groups")
    return tuple(groups[str(group)] for group in range(len(groups)))


def _digest(text: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256, in hexadecimal digits, over the JSON and each array's name, type, shape and bytes."""
    found = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode("utf-8", "surrogatepass"))
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _reason(error: Exception) -> str:
    """The error's message on one line, not longer than a line should be."""
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]

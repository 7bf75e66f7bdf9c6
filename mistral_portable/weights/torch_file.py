"""Reader of torch's zip files of tensors (`torch.save`), without torch and without unpickling.

Layout: a zip of stored members `NAME/data.pkl`, a pickle of {tensor name: tensor}, and `NAME/data/KEY`, the bytes of
each storage. The pickle is parsed opcode by opcode (`pickletools.genops` runs nothing), and a small stack machine
interprets the few opcodes and names below. All others are refused.
"""

import math
import pickletools
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mistral_portable.errors import CheckpointError
from mistral_portable.weights.archive import is_zip, zip_members
from mistral_portable.weights.source import Buffer, DenseTensor

__all__ = ["read_torch"]

_MAX_PICKLE = 2**20  # bytes; for a model with 300 tensors it has 50 KB
_MAX_AXES = 8
_STORAGES: dict[str, tuple[str, type[np.generic]]] = {
    "torch FloatStorage": ("float32", np.float32),
    "torch HalfStorage": ("float16", np.float16),
    "torch BFloat16Storage": ("bfloat16", np.uint16),
    "torch DoubleStorage": ("float64", np.float64),
    "torch LongStorage": ("int64", np.int64),
    "torch IntStorage": ("int32", np.int32),
    "torch ShortStorage": ("int16", np.int16),
    "torch CharStorage": ("int8", np.int8),
    "torch ByteStorage": ("uint8", np.uint8),
    "torch BoolStorage": ("bool", np.bool_),
}


@dataclass(frozen=True)
class _Name:
    """A function or class that the pickle names; it is compared with the known names and never imported."""

    name: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str


@dataclass(frozen=True)
class _StoredTensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]


def read_torch(data: Buffer, source: str) -> list[DenseTensor]:
    """The tensors of a torch file under their stored names, as views of `data`.

    Raises CheckpointError, which begins with `source`, for files that are corrupt, truncated or compressed, that hold
    anything but a flat dict of dense tensors of floats, integers or booleans, or whose pickle names other functions.
    """
    if not is_zip(data):
        raise CheckpointError(f"{source}: no zip file, as torch.save writes since 1.6; save it with a newer torch")
    try:
        members = zip_members(data)
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it has no data.pkl, as torch.save writes it since version 1.6")
        folder = pickles[0].removesuffix("data.pkl")
        if bytes(members.get(f"{folder}byteorder", memoryview(b"little"))[:8]) != b"little":
            raise ValueError("its numbers are not little-endian")
        if members[pickles[0]].nbytes > _MAX_PICKLE:
            raise ValueError(f"its data.pkl has {members[pickles[0]].nbytes} bytes, at most {_MAX_PICKLE} are accepted")
        state = _Walk().run(bytes(members[pickles[0]]))
        if not isinstance(state, dict):
            raise ValueError("it holds no dict of tensors")
        return [_tensor(name, value, members, folder) for name, value in state.items()]
    except ValueError as error:
        raise CheckpointError(f"{source}: not a torch file that can be read safely: {error}") from error


def _tensor(name: object, value: object, members: dict[str, memoryview], folder: str) -> DenseTensor:
    if not isinstance(name, str) or not isinstance(value, _StoredTensor):
        raise ValueError(f"{reprlib.repr(name)} is not a tensor; a flat dict of tensors is needed")
    dtype, stored = _STORAGES[value.storage.kind]
    content = members.get(f"{folder}data/{value.storage.key}")
    end = (value.offset + math.prod(value.shape)) * np.dtype(stored).itemsize
    if content is None or end > content.nbytes:
        raise ValueError(f"the data of {name!r:.100} is missing or too short: {end} bytes are needed")
    array = np.frombuffer(content[:end], stored)[value.offset :]
    return DenseTensor(name, dtype, array.reshape(value.shape))


class _Walk:
    """A stack machine for the opcodes that `torch.save` writes. Raises ValueError for all others."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, pickle: bytes) -> object:
        try:
            for opcode, argument, _ in pickletools.genops(pickle):
                if opcode.name == "STOP":
                    break
                step = _STEPS.get(opcode.name)
                if step is None:
                    raise ValueError(f"its pickle uses {opcode.name}, which no dict of tensors needs")
                step(self, argument)
            return self.stack.pop()
        except (IndexError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"its pickle is damaged: {type(error).__name__}") from error

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def pop_tuple(self, size: int) -> None:
        values = self.stack[len(self.stack) - size :] if size else []
        if len(values) < size:
            raise ValueError("its pickle is damaged: the stack is empty")
        del self.stack[len(self.stack) - size :]
        self.push(tuple(values))

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in values[::2]):
            raise ValueError("its pickle has a dict whose keys are not strings")
        target.update(zip(values[::2], values[1::2], strict=True))

    def name(self, name: str) -> None:
        if name not in _CALLS and name not in _STORAGES:
            raise ValueError(f"its pickle names {reprlib.repr(name)}, which is never loaded")
        self.push(_Name(name))

    def name_from_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(f"{module} {name}")

    def storage(self) -> None:
        match self.stack.pop():
            case ("storage", _Name(kind), str(key), str(), int()) if kind in _STORAGES:
                self.push(_Storage(kind, key))
            case other:
                raise ValueError(f"its pickle refers to {reprlib.repr(other)}, which is not a storage of numbers")

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or function.name not in _CALLS or not isinstance(arguments, tuple):
            raise ValueError("its pickle calls a value that is not a function")
        self.push(_CALLS[function.name](*arguments))

    def build(self) -> None:
        """Drop the attributes that `state_dict` sets on its OrderedDict (`_metadata`)."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise ValueError("its pickle changes an object that is not a dict")


def _rebuild_tensor(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    metadata: object = None,
) -> _StoredTensor:
    """The tensor that `torch._utils._rebuild_tensor_v2` would make of these arguments."""
    if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0:
        raise ValueError("its pickle makes a tensor of a value that is not a storage")
    sizes = shape if isinstance(shape, tuple) and len(shape) <= _MAX_AXES else (-1,)
    if not all(type(size) is int and 0 <= size < 2**48 for size in sizes):
        raise ValueError(f"a tensor has the shape {reprlib.repr(shape)}")
    rows_first = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    strides = stride if isinstance(stride, tuple) and len(stride) == len(sizes) else (-1,) * len(sizes)
    moved = [given != needed for size, given, needed in zip(sizes, strides, rows_first, strict=True) if size > 1]
    if any(moved) and 0 not in sizes:
        raise ValueError(f"a tensor of the shape {sizes} has the strides {reprlib.repr(stride)}: it is not contiguous")
    return _StoredTensor(storage, offset, sizes)


def _rebuild_parameter(data: object, requires_grad: object, hooks: object) -> object:
    """The tensor of a parameter, in place of `torch._utils._rebuild_parameter`."""
    return data


def _ordered_dict() -> dict[str, object]:
    return {}


_CALLS: dict[str, Callable[..., object]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
}

_Step = Callable[[_Walk, Any], object]


def _constant(value: object) -> _Step:
    return lambda walk, argument: walk.push(value)


def _push(walk: _Walk, argument: Any) -> None:
    walk.push(argument)


def _put(walk: _Walk, argument: Any) -> None:
    walk.memo[len(walk.memo) if argument is None else argument] = walk.stack[-1]


def _ignore(walk: _Walk, argument: Any) -> None:
    pass


_STEPS: dict[str, _Step] = {
    "PROTO": _ignore,
    "FRAME": _ignore,
    "MARK": lambda walk, argument: walk.marks.append(len(walk.stack)),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    **dict.fromkeys(["BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINFLOAT"], _push),
    **dict.fromkeys(["BININT", "BININT1", "BININT2", "LONG1"], _push),
    **dict.fromkeys(["BINPUT", "LONG_BINPUT", "MEMOIZE"], _put),
    **dict.fromkeys(["BINGET", "LONG_BINGET"], lambda walk, argument: walk.push(walk.memo[argument])),
    "EMPTY_DICT": lambda walk, argument: walk.push({}),
    "EMPTY_LIST": lambda walk, argument: walk.push([]),
    "EMPTY_TUPLE": lambda walk, argument: walk.push(()),
    "TUPLE": lambda walk, argument: walk.push(tuple(walk.pop_to_mark())),
    "TUPLE1": lambda walk, argument: walk.pop_tuple(1),
    "TUPLE2": lambda walk, argument: walk.pop_tuple(2),
    "TUPLE3": lambda walk, argument: walk.pop_tuple(3),
    "SETITEM": lambda walk, argument: walk.set_items([walk.stack.pop(-2), walk.stack.pop(-1)]),
    "SETITEMS": lambda walk, argument: walk.set_items(walk.pop_to_mark()),
    "GLOBAL": lambda walk, argument: walk.name(argument),
    "STACK_GLOBAL": lambda walk, argument: walk.name_from_stack(),
    "BINPERSID": lambda walk, argument: walk.storage(),
    "REDUCE": lambda walk, argument: walk.call(),
    "BUILD": lambda walk, argument: walk.build(),
}

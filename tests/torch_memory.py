"""Memory of the torch executor's steps, as an allocator would count it, and the least with which they are allowed."""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mistral_portable.errors import CapacityError

__all__ = ["Held", "least_memory"]


class Held(TorchDispatchMode):
    """Counts the bytes of the storages that operations make and that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: Counter[int] = Counter()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for tensor in [out] if isinstance(out, torch.Tensor) else []:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given and storage.data_ptr() not in self.sizes:
                self.sizes[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage.data_ptr(), None)
        self.most = max(self.most, self.sizes.total())
        return out


def least_memory(run: Callable[[int], object], most: int) -> int:
    """The least number of bytes, up to `most`, with which `run` raises no CapacityError."""
    low, high = 0, most
    run(high)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            run(middle)
            high = middle
        except CapacityError:
            low = middle
    return high

"""Group: the processes that share a model, started together by torchrun, and what they send each other."""

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from mistral_portable.errors import BackendError, ClosedError
from mistral_portable_torch.device import Device

__all__ = ["Group", "LostProcessError", "join", "signals_are"]

_FOR_EVER = timedelta(days=3650)  # between two calls of a server may be a night


class LostProcessError(ClosedError):
    """Another process has ended, and with it its part of the model."""


@dataclass(frozen=True)
class Group:
    """All processes, as this one sees them. rank: its own number, 0 .. size - 1. control: torch's group for all but
    tensors of steps: it is gloo's on each device, and waits for ever.

    Every method is called by all processes, in the same order. Those that wait for another process raise
    LostProcessError if that one has ended.
    """

    rank: int
    size: int
    control: Any = None

    def sum(self, x: Tensor) -> Tensor:
        """[T, H]: the sum over all processes."""
        with _exchanging():
            distributed.all_reduce(x)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """[T, V / size] -> [T, V]: the columns of all processes, in order of ranks."""
        own, parts = x.contiguous(), [torch.empty_like(x) for _ in range(self.size)]
        with _exchanging():
            distributed.all_gather(parts, own)
        return torch.cat(parts, dim=-1)

    def least(self, number: int) -> int:
        """The least of the numbers of all processes."""
        found = torch.tensor(number)
        with _exchanging():
            distributed.all_reduce(found, op=distributed.ReduceOp.MIN, group=self.control)
        return int(found)

    def share(self, value: Any = None) -> Any:
        """The value that the first process gives: anything that can be pickled."""
        box = [value]
        with _exchanging():
            distributed.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """The values that all processes give, in order of ranks; in others than the first one an empty list."""
        found: list[Any] = [None] * self.size if self.rank == 0 else []
        with _exchanging():
            distributed.gather_object(value, found or None, dst=0, group=self.control)
        return found

    def leave(self) -> None:
        """Leave the others: whoever waits for this process, now or later, raises LostProcessError."""
        _leave(os.getpid())


def join(size: int, device: Device) -> Group:
    """Join the processes that torchrun has started. Raises BackendError if their number is not `size`, or if this
    process has joined others before."""
    started = os.environ.get("WORLD_SIZE")
    if started != str(size):
        raise BackendError(
            f"tensor_parallel={size}: torchrun has started {started or 'no'} processes: begin the command with "
            f"torchrun --nproc-per-node {size} -m mistral_portable"
        )
    if distributed.is_initialized():
        raise BackendError(
            f"tensor_parallel={size}: this process has joined others before: they share one model, and end with it"
        )
    try:
        with signals_are(signal.SIG_DFL):  # it waits in C++, where Python's handlers do not run
            distributed.init_process_group("nccl" if device.kind == "cuda" else "gloo")
            control = distributed.new_group(backend="gloo", timeout=_FOR_EVER)
    except ValueError as error:  # a variable that torchrun sets is missing
        raise BackendError(f"tensor_parallel={size}: {error}: begin the command with torchrun") from error
    # gloo's threads sometimes abort a process that ends while they run.
    atexit.register(_leave, os.getpid())
    return Group(distributed.get_rank(), size, control)


@contextmanager
def signals_are(handler: signal.Handlers) -> Iterator[None]:
    """Let SIGINT and SIGTERM be ignored in the block, or end the process at once. Python allows that in the main thread
    alone; in others nothing changes."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (None, signal.SIG_IGN):  # None: it is not Python's
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for changed, own in before.items():
            signal.signal(changed, own)


@contextmanager
def _exchanging() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo's and NCCL's
        raise LostProcessError(
            "a process that shares this model has ended, and with it its part: start all of them again"
        ) from error


def _leave(process: int) -> None:
    """Leave the group, unless it was left before, or this is a forked child of the process that joined it."""
    if os.getpid() == process and distributed.is_initialized():
        distributed.destroy_process_group()

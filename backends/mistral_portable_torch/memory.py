"""Memory that a model needs and the device has; the error for a model that cannot fit shows both."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mistral_portable.boundary.shared import gigabytes
from mistral_portable.errors import CapacityError, ClosedError
from mistral_portable_torch.device import Device
from mistral_portable_torch.processes import Group

__all__ = ["Memory"]


class Memory:
    """The memory that a program may allocate on a device. Processes that share a model all have as much as the one that
    has least, so that what does not fit in one of them is refused in each, before they exchange anything."""

    def __init__(self, device: Device, limit: int | None = None, group: Group | None = None) -> None:
        """limit: bytes that may be allocated from now on; None: those that are free on the device. group: the processes
        that share the model."""
        self._device, self._limit, self._group, self._taken = device, limit, group, 0

    @property
    def free(self) -> int:
        """Bytes that may still be allocated."""
        return self._in_all(self._own_free)

    def fits(self, size: int) -> bool:
        """Whether `size` bytes are free; of processes that share a model, whether each has what it asks for."""
        return self._in_all(self._own_free - size) >= 0

    def take(self, size: int) -> None:
        """Count `size` bytes as allocated; a negative number counts them as freed."""
        self._taken += size

    def require(self, weights: int, lane: int, scratch: int, tokens: int) -> None:
        """Raise CapacityError if weights, a first lane of `tokens` tokens, and the scratch of its step do not fit."""
        total = weights + lane + scratch
        free = self.free
        if total > free:
            raise CapacityError(
                f"the model does not fit: weights {gigabytes(weights)} + keys and values of {tokens} tokens "
                f"{gigabytes(lane)} + scratch of their step {gigabytes(scratch)} = {gigabytes(total)}, and "
                f"{self._device.name} has {gigabytes(free)} free: use --quantize q4_0, a smaller model or another "
                "device"
            )

    def require_step(self, scratch: int, more: int, tokens: int) -> None:
        """Raise CapacityError if a step's scratch and `more` bytes for pages of keys and values do not fit."""
        free = self.free
        if scratch + more > free:
            raise CapacityError(
                f"a step does not fit: scratch of {tokens} tokens {gigabytes(scratch)} + pages of keys and values "
                f"{gigabytes(more)} = {gigabytes(scratch + more)}, and {self._device.name} has {gigabytes(free)} "
                "free: use a shorter text or fewer sequences"
            )

    def require_growth(self, more: int) -> None:
        """Raise CapacityError if `more` bytes for pages of keys and values do not fit."""
        free = self.free
        if more > free:
            raise CapacityError(
                f"the cache does not fit: keys and values need {gigabytes(more)} more, and {self._device.name} has "
                f"{gigabytes(free)} free: use a shorter text or fewer sequences"
            )

    @contextmanager
    def while_loading(self) -> Iterator[None]:
        """Raise CapacityError in place of torch's out-of-memory error, for the loading of a model."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise CapacityError(self._short("the model does not fit")) from error

    @contextmanager
    def while_stepping(self) -> Iterator[None]:
        """Raise CapacityError in place of torch's out-of-memory error, for a step; ClosedError where other processes
        may be amid the same step, which cannot go on."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            short = self._short("a step's scratch does not fit beside weights and cache")
            raise (CapacityError if self._group is None else ClosedError)(short) from error

    @property
    def _own_free(self) -> int:
        return self._device.free_memory if self._limit is None else self._limit - self._taken

    def _in_all(self, number: int) -> int:
        """The least of the numbers of all processes that share the model."""
        return number if self._group is None else self._group.least(number)

    def _short(self, what: str) -> str:
        name, free, total = self._device.name, self._device.free_memory, self._device.total_memory
        return (
            f"{what}: {name} has {gigabytes(free)} of {gigabytes(total)} free: use --quantize q4_0, a shorter text, "
            "fewer sequences, or another device"
        )

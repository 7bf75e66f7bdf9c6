"""Memory that a model needs and a device has: a model that cannot fit is refused with the sum."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch

from mistral_portable.boundary.shared import gigabytes
from mistral_portable.errors import CapacityError
from mistral_portable_torch.device import Device

__all__ = ["Memory"]


class Memory:
    """The device's memory, or less of it."""

    def __init__(self, device: Device, most: int | None = None) -> None:
        """most: bytes that may be taken from now on, instead of what is free."""
        self._device, self._most, self._taken = device, most, 0

    @property
    def free(self) -> int:
        """Bytes that may be taken."""
        return self._device.free_memory if self._most is None else self._most - self._taken

    def take(self, size: int) -> None:
        """Count `size` bytes, which may be negative, as taken."""
        self._taken += size

    def require(self, weights: int, lane: int, tokens: int) -> None:
        """Raise CapacityError if weights and a first lane of `tokens` tokens do not fit."""
        if weights + lane > self.free:
            raise CapacityError(
                f"the model does not fit: weights {gigabytes(weights)} + keys and values of {tokens} tokens "
                f"{gigabytes(lane)} = {gigabytes(weights + lane)}, and {self._device.name} has {gigabytes(self.free)} "
                "free: use --quantize q4_0, a smaller model or another device"
            )

    def require_growth(self, more: int) -> None:
        """Raise CapacityError if there are no `more` bytes for pages of keys and values."""
        if more > self.free:
            raise CapacityError(
                f"the cache does not fit: keys and values need {gigabytes(more)} more, and {self._device.name} has "
                f"{gigabytes(self.free)} free: use a shorter text or fewer sequences"
            )

    @contextmanager
    def short_for_a_model(self) -> Iterator[None]:
        """Say in one line that memory ran out while a model was loaded."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._raise_short(error, "the model does not fit")

    @contextmanager
    def short_for_a_step(self) -> Iterator[None]:
        """Say in one line that memory ran out in a step."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._raise_short(error, "a step's scratch does not fit beside weights and cache")

    def _raise_short(self, error: Exception, what: str) -> NoReturn:
        name, free, total = self._device.name, self._device.free_memory, self._device.total_memory
        raise CapacityError(
            f"{what}: {name} has {gigabytes(free)} of {gigabytes(total)} free: use --quantize q4_0, a shorter text, "
            "fewer sequences, or another device"
        ) from error

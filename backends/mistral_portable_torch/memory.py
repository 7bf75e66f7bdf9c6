"""What a model needs and what the device has: a model that cannot fit is refused with the sum."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch

from mistral_portable.errors import BackendError, CacheError
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
        """Raise BackendError if weights and a first lane of `tokens` tokens do not fit."""
        if weights + lane > self.free:
            raise BackendError(
                f"the model does not fit: weights {_gb(weights)} + keys and values of {tokens} tokens {_gb(lane)} = "
                f"{_gb(weights + lane)}, and {self._device.name} has {_gb(self.free)} free: use --quantize q4_0, a "
                "smaller model or another device"
            )

    def require_growth(self, more: int, tokens: int) -> None:
        """Raise CacheError if keys and values of a sequence of `tokens` tokens take `more` bytes than there are."""
        if more > self.free:
            raise CacheError(
                f"the cache of a sequence of {tokens} tokens does not fit: {_gb(more)} more, and {self._device.name} "
                f"has {_gb(self.free)} free: use a shorter text or fewer sequences"
            )

    @contextmanager
    def short_for_a_model(self) -> Iterator[None]:
        """Say in one line that memory ran out while a model was loaded."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._raise_short(error, "the model does not fit", BackendError)

    @contextmanager
    def short_for_a_step(self) -> Iterator[None]:
        """Say in one line that memory ran out in a step."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._raise_short(error, "a step's scratch does not fit beside weights and cache", CacheError)

    def _raise_short(self, error: Exception, what: str, kind: type[BackendError] | type[CacheError]) -> NoReturn:
        name, free, total = self._device.name, self._device.free_memory, self._device.total_memory
        raise kind(
            f"{what}: {name} has {_gb(free)} of {_gb(total)} free: use --quantize q4_0, a shorter text, fewer "
            "sequences, or another device"
        ) from error


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"

"""Copies between host and device. From and to a CUDA GPU they go through pinned memory: copies of other memory are made
by the driver in pieces, and the host waits for each."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["HostCopy", "to_device"]


def to_device(words: NDArray[np.int32], device: torch.device) -> Tensor:
    """Begin to copy int32 words to the device."""
    tensor = torch.from_numpy(words)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class HostCopy:
    """A copy of a tensor in the host's memory; it begins now, and the host waits when it is read."""

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._event = tensor, None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def numpy(self) -> NDArray[Any]:
        """An array of the caller's own: pinned memory goes back to torch, which gives it to later copies."""
        if self._event is not None:
            self._event.synchronize()
        return np.array(self._host.cpu().numpy())

"""The device that torch runs on: a CUDA GPU, Apple's Metal (MPS) or the CPU; its float types and its memory."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from mistral_portable.errors import BackendError

__all__ = ["Device", "find_device"]


@dataclass(frozen=True)
class Device:
    """torch: torch's device. name: the chip's name. capability: a CUDA GPU's compute capability, such as (9, 0)."""

    torch: torch.device
    name: str
    capability: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """ "cuda", "mps" or "cpu"."""
        return self.torch.type

    @property
    def dtypes(self) -> Sequence[str]:
        """Float types that the hardware computes in, without emulation."""
        if self.capability is not None and self.capability < (8, 0):
            return ("float32", "float16")
        return ("float32", "float16", "bfloat16")

    def as_current(self) -> AbstractContextManager[object]:
        """A context in which it is torch's current GPU, on which Triton runs."""
        return torch.cuda.device(self.torch) if self.torch.type == "cuda" else nullcontext()

    @property
    def total_memory(self) -> int:
        """Bytes of memory."""
        if self.kind == "cuda":
            return int(torch.cuda.get_device_properties(self.torch).total_memory)
        if self.kind == "mps":
            return torch.mps.recommended_max_memory()
        return _main_memory()

    @property
    def free_memory(self) -> int:
        """Bytes that this process can allocate now, on a CUDA GPU including what torch holds in reserve."""
        if self.kind == "cuda":
            free, _ = torch.cuda.mem_get_info(self.torch)
            reserve = torch.cuda.memory_reserved(self.torch) - torch.cuda.memory_allocated(self.torch)
            return int(free) + reserve
        if self.kind == "mps":
            return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
        return _free_main_memory()


def find_device(wanted: str | None = None) -> Device:
    """The device of that name, or the best one: CUDA, else MPS, else the CPU. Raises BackendError if there is none."""
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = wanted or next(kind for kind, usable in kinds.items() if usable)
    kind, _, index = name.partition(":")
    if kind not in kinds or (index and not (index.isascii() and index.isdigit())):
        raise BackendError(f"device={name!r}: choose cuda, cuda:0, cuda:1 and so on, mps or cpu")
    if not kinds[kind]:
        raise BackendError(f"device={name!r}: {_why_not(kind)}; choose another device, or leave the option out")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if int(index or 0) >= count:
        raise BackendError(f"device={name!r}: the last {kind} device here is {kind}:{count - 1}; choose one up to it")
    if kind == "cuda":
        device = torch.device(kind, int(index) if index else torch.cuda.current_device())
        return Device(device, torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    return Device(torch.device(kind), "Metal" if kind == "mps" else torch.backends.cpu.get_cpu_capability())


def _why_not(kind: str) -> str:
    if kind == "mps":
        return "torch finds no Metal (it needs Apple Silicon and macOS 14)"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install another build: https://pytorch.org/get-started/locally"
    return "torch finds no CUDA GPU: check that nvidia-smi lists it, and that CUDA_VISIBLE_DEVICES does not hide it"


def _main_memory() -> int:
    """Bytes of main memory, or the control group's limit if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _free_main_memory() -> int:
    """Bytes available without swapping; all main memory where the system does not say."""
    status = Path("/proc/meminfo")
    lines = status.read_text().splitlines() if status.exists() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), _main_memory())
    return min(free, _main_memory())

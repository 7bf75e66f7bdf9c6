"""The device that MLX runs on here: Metal, CUDA or the CPU, and its memory."""

import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

__all__ = ["Device", "find_device"]

# MLX multiplies float32 matrices in TF32 (10 bits) on CUDA and on Apple's M5 unless this is set before its first
# product: https://github.com/ml-explore/mlx/issues/3860. Here float32 means float32, unless the user has set it.
os.environ.setdefault("MLX_ENABLE_TF32", "0")


@dataclass(frozen=True)
class Device:
    """kind: "Metal", "CUDA" or "CPU". name: the chip's. memory: bytes for weights, cache and scratch together.
    architecture: as MLX names it, "applegpu_g14s" say."""

    kind: str
    name: str
    memory: int
    version: str
    architecture: str = ""

    @property
    def emulates_bfloat16(self) -> bool:
        """True if it computes bfloat16 in several operations: Apple's GPUs do before the M3, "applegpu_g15"."""
        return self.architecture.startswith(("applegpu_g13", "applegpu_g14"))


def find_device() -> Device:
    """Find MLX's default device. Raises ImportError without MLX, RuntimeError if MLX or its device does not work."""
    import mlx.core as mx

    info = mx.device_info(mx.default_device())
    if mx.default_device().type == mx.DeviceType.gpu:
        kind = "Metal" if mx.metal.is_available() else "CUDA"
        # On Metal the recommended working set: beyond it the system would swap.
        sizes = [info.get(key) for key in ("max_recommended_working_set_size", "total_memory", "memory_size")]
        memory = next((size for size in sizes if isinstance(size, int) and size > 0), 0)
        if not memory:
            raise RuntimeError(f"it does not tell the memory of its {kind} device, only {', '.join(info)}")
    else:
        kind, memory = "CPU", _main_memory()
    names = str(info.get("device_name", "unknown")), str(info.get("architecture", ""))
    return Device(kind, names[0], memory, version("mlx"), names[1])


def _main_memory() -> int:
    """Bytes of main memory, or the control group's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total

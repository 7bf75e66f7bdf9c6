"""Limits of a device, and attention over the length of a prompt, naive and by kernels that are not.

python -m tools.bench_torch --device cuda                    # seconds per length; draws docs/attention.svg
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from mistral_portable_torch.attention import choose
from mistral_portable_torch.device import Device, find_device
from mistral_portable_torch.obstacles import KERNELS, obstacle
from mistral_portable_torch.reads import GroupReads

from mistral_portable.cache import CacheManager, CacheSpec, Chunk, LayerGroup
from tools.bench_report import DOCS
from tools.positive import positive

__all__ = ["attention_seconds", "copy_bandwidth", "draw", "matmul_peak"]

_PAGE = 256
_HEADS, _KV_HEADS, _HEAD_DIM = 32, 8, 128  # Mistral 7B's
_EAGER_MOST = 16384  # its scores take 32 * length^2 * 4 bytes


def seconds(function: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """The median time of a call, until the device is done; one call before does what is done once."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        begin = time.perf_counter()
        function()
        _wait(device)
        times.append(time.perf_counter() - begin)
    return median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written in a second, of a large copy."""
    size = 2**32 if device.type == "cuda" else 2**27
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device)


def matmul_peak(device: torch.device, dtype: str) -> float:
    """Multiplications and additions in a second, of a product of large square matrices."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    out = torch.empty_like(a)
    return 2 * size**3 / seconds(lambda: torch.mm(a, a, out=out), device)


def attention_seconds(kernel: str, device: Device, length: int, window: int | None, dtype: str) -> float:
    """Attention of one layer of Mistral 7B over a prompt of `length` tokens in one chunk."""
    attention = choose(kernel, device, dtype, _HEAD_DIM)
    count = -(-length // _PAGE)
    groups = (LayerGroup(window, (0,), _PAGE, ring=False),)
    spec = CacheSpec(groups, _KV_HEADS, _HEAD_DIM, max_lanes=1, max_context=length, max_chunk=length)
    manager = CacheManager(spec)
    reads = GroupReads(manager.plan([Chunk(manager.open(), range(length))]), spec, 0)
    kind = {"dtype": getattr(torch, dtype), "device": device.torch}
    q = torch.randn(length, _HEADS, _HEAD_DIM, **kind)
    keys, values = (torch.randn(count, _PAGE, _KV_HEADS, _HEAD_DIM, **kind) for _ in range(2))
    planned = attention.plan(reads, recorded=False)
    arrays = {name: torch.from_numpy(array).to(device.torch) for name, array in planned.arrays.items()}
    prepared = attention.prepare(type(planned)(planned.fixed, arrays))  # type: ignore[arg-type]  # of tensors now

    def run() -> None:
        with torch.inference_mode():
            attention.attend(q, keys, values, prepared, _HEAD_DIM**-0.5)

    return seconds(run, device.torch, repeats=3)


def draw(times: dict[str, dict[int, float]], title: str, path: Path) -> None:
    """Milliseconds over the length, a line per kernel, both axes logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "attention"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for kernel, by_length in times.items():
        axes.loglog(list(by_length), [value * 1e3 for value in by_length.values()], marker="o", label=kernel)
    axes.set_xlabel("tokens of the prompt")
    axes.set_ylabel("ms, one layer")
    axes.set_title(title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench_torch", description="Attention over a prompt's length."
    )
    parser.add_argument("--device", help="default: the best one")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--window", type=positive, default=4096)
    parser.add_argument("--lengths", type=positive, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--out", type=Path, default=DOCS, help="folder for attention.svg and attention.json")
    args = parser.parse_args(arguments)
    device = find_device(args.device)
    times: dict[str, dict[int, float]] = {}
    for kernel in KERNELS:
        if reason := obstacle(kernel, device.kind, device.capability, args.dtype, _HEAD_DIM):
            print(f"{kernel}: skipped, {reason}")
            continue
        most = _EAGER_MOST if kernel == "eager" else max(args.lengths)
        for length in (length for length in args.lengths if length <= most):
            taken = attention_seconds(kernel, device, length, args.window, args.dtype)
            times.setdefault(kernel, {})[length] = taken
            print(f"{kernel} {length}: {taken * 1e3:.3f} ms", flush=True)
    (args.out / "attention.json").write_text(json.dumps({"device": device.name, "seconds": times}, indent=1) + "\n")
    draw(times, f"{device.name}, {args.dtype}, window {args.window}", args.out / "attention.svg")


if __name__ == "__main__":
    main()

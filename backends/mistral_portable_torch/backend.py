"""The descriptor of the torch executor."""

import os
import platform
import sys
import warnings
from collections.abc import Mapping
from functools import partial

from mistral_portable.boundary import Availability, Capabilities, ExecutorOptions, Precision, Program
from mistral_portable.boundary.shared import stored_dtype
from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor
from mistral_portable_torch.installed import OLDEST, Build, installed_build
from mistral_portable_torch.obstacles import summary

__all__ = ["BACKEND", "TorchBackend"]

_DTYPES = ("float32", "float16", "bfloat16")
_SCORES = {"cuda": 15, "mps": 8, "cpu": 4}  # numba has 10, so it wins on a CPU
_CHUNK = 2048  # tokens of a step on CUDA that reads prompts: packed weights are unpacked once for all of them
_INSTALL = "pip install --upgrade 'mistral-portable[torch]'"


class TorchBackend:
    """torch on a CUDA GPU, Apple's Metal or a CPU.

    The default dtype is float32 on a CPU. On a GPU it is the float type of most weights, where ggml blocks count as
    float16, the type of their scales.
    """

    name = "torch"
    capabilities = Capabilities(
        dtypes={dtype: (dtype,) for dtype in _DTYPES},
        options=frozenset({"threads", "device", "attention", "quantize", "tensor_parallel"}),
        page_size=256,  # flash-attn needs a multiple of 256
    )

    def probe(self) -> Availability:
        try:
            build = installed_build()
        except Exception as error:  # a version file that cannot be run
            return Availability(0, f"torch's installation is broken ({error}): {_INSTALL}")
        if build is None:
            return Availability(0, f"torch is not installed: {_INSTALL}")
        if build.too_old:
            return Availability(0, f"torch {build.version} is older than {'.'.join(map(str, OLDEST))}: {_INSTALL}")
        return _probe_cpu(build) if build.cuda is None else _probe_any()

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        try:
            from mistral_portable_torch.device import find_device
        except (ImportError, OSError) as error:
            raise BackendError(f"torch cannot be imported ({error}): {_INSTALL}") from error
        device = find_device(options.device)
        if device.kind == "cpu":
            return "float32"
        stored = stored_dtype(weights.values())
        if stored in device.dtypes:
            return stored
        warnings.warn(f"the weights are {stored}, which {device.name} does not compute in: using float16", stacklevel=2)
        return "float16"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        try:
            from mistral_portable_torch.attention import choose
            from mistral_portable_torch.capture import cuda_graph
            from mistral_portable_torch.device import find_device
            from mistral_portable_torch.lockstep import share_program
            from mistral_portable_torch.memory import Memory
            from mistral_portable_torch.processes import join
            from mistral_portable_torch.program import AsynchronousProgram, DrawingTorchProgram, TorchProgram
        except (ImportError, OSError) as error:
            raise BackendError(f"torch cannot be imported ({error}): {_INSTALL}") from error
        device, group = find_device(options.device), None
        if options.tensor_parallel > 1:
            if options.device is None and device.kind == "cuda":
                device = find_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
            group = join(options.tensor_parallel, device)
        dtype = options.dtype
        assert dtype is not None  # set by `boundary.prepare`
        if dtype not in device.dtypes:
            raise BackendError(f"dtype {dtype!r}: {device.name} computes in {', '.join(device.dtypes)}; choose one")
        if options.threads is not None and device.kind != "cpu":
            raise BackendError(f"threads={options.threads}: the device is {device.kind}, no CPU; leave the option out")
        attention = choose(options.attention, device, dtype, cache.head_dim)
        kind = TorchProgram if device.kind == "cpu" else AsynchronousProgram
        # Metal has no float64. And of several processes one might leave a row to the sampler that another one draws, as
        # sums on a GPU need not have the same order twice: their steps would then be others.
        if device.kind == "cuda" and group is None:
            kind = DrawingTorchProgram
        make = partial(
            kind,
            graph,
            weights,
            cache,
            Precision(dtype),
            device,
            attention,
            Memory(device, group=group),
            threads=options.threads,
            chunk=_CHUNK if device.kind == "cuda" else None,
            record=cuda_graph(device.torch) if device.kind == "cuda" and attention.recordable else None,
            quantize=options.quantize,
            group=group,
            progress=options.progress,
        )
        return make() if group is None else share_program(make, group)


def _probe_cpu(build: Build) -> Availability:
    """The availability of a torch without CUDA, found without importing it."""
    kind = "mps" if sys.platform == "darwin" and platform.machine() == "arm64" else "cpu"
    return _availability(kind, {"mps": "Metal (MPS)", "cpu": "CPU"}[kind], None, build.version)


def _probe_any() -> Availability:
    try:
        from mistral_portable_torch.device import find_device

        device = find_device()
        where = f"{device.kind.upper()}, {device.name}, {device.total_memory / 1e9:.0f} GB"
    except (ImportError, OSError, RuntimeError) as error:
        return Availability(0, f"torch cannot be imported ({error}): {_INSTALL}")
    build = installed_build()
    assert build is not None
    return _availability(device.kind, where, device.capability, build.version)


def _availability(kind: str, where: str, capability: tuple[int, int] | None, version: str) -> Availability:
    kernels = summary(kind, capability)
    return Availability(_SCORES[kind], f"{where}, torch {version}: {', '.join(_DTYPES)}; attention by {kernels}")


BACKEND = TorchBackend()

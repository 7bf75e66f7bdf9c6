"""The descriptor of the MLX executor."""

from collections.abc import Mapping

from mistral_portable.boundary import Availability, ExecutorOptions, Precision, Program, require_supported
from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.graph import OPS, Graph
from mistral_portable.weights import Tensor

__all__ = ["BACKEND", "MLXBackend"]

_DTYPES = ("float32", "float16", "bfloat16")
_SCORES = {"Metal": 20, "CUDA": 12, "CPU": 5}  # Numba, which is made for CPUs, has 10


class MLXBackend:
    """Apple's MLX on its default device.

    dtype: by default float32 on a CPU, and on a GPU the float type that most of the weights are stored in, where
    ggml's blocks count as float16, as their scales are.
    """

    name = "mlx"

    def __init__(self, memory: int | None = None) -> None:
        """memory: bytes that all of MLX may take, instead of what the device offers."""
        self._memory = memory

    def probe(self) -> Availability:
        try:
            from mistral_portable_mlx.device import find_device

            device = find_device()
        except ImportError as error:
            return Availability(0, f"MLX cannot be imported ({error}): pip install --upgrade 'mistral-portable[mlx]'")
        except RuntimeError as error:
            return Availability(0, f"MLX finds no device ({error}): see https://ml-explore.github.io/mlx, 'Install'")
        where = f"{device.kind}, {device.name}, {device.memory / 1e9:.0f} GB"
        return Availability(_SCORES[device.kind], f"{where}, MLX {device.version}: {', '.join(_DTYPES)}, 2 to 8 bits")

    def supports(self, op: str, dtype: str) -> str | None:
        if dtype not in _DTYPES:
            return f"dtype {dtype!r}: this backend computes in {', '.join(_DTYPES)}; choose one, or another backend"
        return None if op in OPS else f"unknown op {op!r}"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        from mistral_portable_mlx.device import find_device
        from mistral_portable_mlx.matrices import stored_dtype
        from mistral_portable_mlx.memory import Memory
        from mistral_portable_mlx.program import MLXProgram

        options.refuse("mlx", "device", "attention", "quantize", "tensor_parallel")
        device = find_device()
        dtype = options.dtype or ("float32" if device.kind == "CPU" else stored_dtype(weights.values()))
        require_supported(self, graph, dtype)
        if options.kv_cache not in (None, dtype, "q8_0"):
            raise BackendError(
                f"backend 'mlx' has no kv_cache {options.kv_cache!r} beside dtype {dtype!r}: "
                f"choose {dtype} or q8_0, or leave the option out"
            )
        if options.threads is not None:
            raise BackendError(f"threads={options.threads}: MLX has its own threads; leave the option out")
        precision = Precision(dtype, kv_cache=options.kv_cache)
        memory = Memory(self._memory or device.memory, device.kind)
        return MLXProgram(graph, weights, cache, precision, memory, options.progress)


BACKEND = MLXBackend()

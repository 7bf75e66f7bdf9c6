"""Descriptor of the MLX executor."""

import warnings
from collections.abc import Mapping

from mistral_portable.boundary import Availability, Capabilities, ExecutorOptions, Precision, Program
from mistral_portable.boundary.shared import stored_dtype
from mistral_portable.cache import CacheSpec
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor

__all__ = ["BACKEND", "MLXBackend"]

_DTYPES = ("float32", "float16", "bfloat16")
_SCORES = {"Metal": 20, "CUDA": 12, "CPU": 5}  # Numba's, on a CPU, is 10


class MLXBackend:
    """Apple's MLX on its default device."""

    name = "mlx"
    capabilities = Capabilities(dtypes={dtype: (dtype, "q8_0") for dtype in _DTYPES})

    def __init__(self, memory: int | None = None) -> None:
        """memory: bytes that MLX may take in this process; None: all that the device offers."""
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

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        """float32 on a CPU; on a GPU the float type that most of the weights are stored in (`stored_dtype`)."""
        from mistral_portable_mlx.device import find_device

        return "float32" if find_device().kind == "CPU" else stored_dtype(weights.values())

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        from mistral_portable_mlx.device import find_device
        from mistral_portable_mlx.memory import Memory
        from mistral_portable_mlx.program import DrawingMLXProgram, MLXProgram

        assert options.dtype is not None  # set by `boundary.prepare`
        device = find_device()
        precision = Precision(options.dtype, kv_cache="q8_0" if options.kv_cache == "q8_0" else None)
        memory = Memory(self._memory or device.memory, device.kind)
        if options.dtype == "bfloat16" and device.emulates_bfloat16:
            warnings.warn(
                f"{device.name} has no bfloat16 arithmetic and emulates it: --dtype float16 may be faster, where "
                "activations stay below 65,504",
                stacklevel=2,
            )
        kind = MLXProgram if device.kind == "CPU" else DrawingMLXProgram
        program = kind(graph, weights, cache, precision, memory, options.progress)
        if device.kind != "CPU":  # where MLX compiles kernels when they are first used
            program.warm()
        return program


BACKEND = MLXBackend()

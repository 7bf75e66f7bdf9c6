"""The descriptor of the Numba executor."""

import os
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mistral_portable.boundary import Availability, Capabilities, ExecutorOptions, Precision, Program, Quantizer
from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor
from mistral_portable_numba.layouts import PAGE_SIZE

__all__ = ["BACKEND", "NumbaBackend"]


class NumbaBackend:
    """CPU executor: kernels written in Python and compiled for the machine's instruction set.

    dtype "int8" (the default): linears whose weights are ggml blocks multiply 8-bit integers. "float32": such weights
    are unpacked to float32. "bfloat16": as "int8", and inputs of linears over bfloat16 weights may be rounded to
    bfloat16: where AMX works, that is three times as fast.
    """

    name = "numba"
    capabilities = Capabilities(
        dtypes={
            "int8": ("float16", "q8_0", "float32"),
            "float32": ("float32", "float16", "q8_0"),
            "bfloat16": ("float16", "q8_0", "float32"),
        },
        options=frozenset({"threads"}),
        page_size=PAGE_SIZE,
    )

    def __init__(self, isa: str | None = None, folder: Path | None = None) -> None:
        """isa: a key of `compiler.isa.ISAS`; None: $MISTRAL_PORTABLE_ISA, or else the machine's best. folder: the cache
        of compiled kernels; None: `compiler.objects.default_folder()`."""
        self._isa, self._folder = isa, folder

    def probe(self) -> Availability:
        from mistral_portable_numba.threads import default_threads

        try:
            from mistral_portable_numba.compiler.chosen import chosen_isa

            isa = chosen_isa(self._isa, self._folder)
            compiler = version("numba")
        except BackendError as error:
            return Availability(0, str(error), refused=True)
        except (ImportError, OSError, PackageNotFoundError) as error:
            return Availability(0, f"{error}: pip install --upgrade numba")
        threads = default_threads()
        cores = f"{threads} thread{'' if threads == 1 else 's'}"
        return Availability(10, f"CPU, {isa.title}, {cores}, Numba {compiler}: int4 GGUF, int8 or float32 arithmetic")

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        return "int8"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        from mistral_portable_numba.compiler.chosen import chosen_isa
        from mistral_portable_numba.compiler.objects import default_folder
        from mistral_portable_numba.program import NumbaProgram

        folder = self._folder or default_folder()
        kept = options.dtype == "float32"
        precision = Precision(
            "bfloat16" if options.dtype == "bfloat16" else "float32", None if kept else "int8", options.kv_cache
        )
        return NumbaProgram(
            graph,
            weights,
            cache,
            precision,
            options,
            isa=chosen_isa(self._isa, folder),
            threads=_threads(options),
            folder=folder,
        )

    def quantizer(self, types: Collection[str], options: ExecutorOptions) -> Quantizer:
        from mistral_portable_numba.compiler.chosen import chosen_isa
        from mistral_portable_numba.compiler.objects import default_folder
        from mistral_portable_numba.quantizer import NumbaQuantizer

        return NumbaQuantizer(
            types,
            isa=chosen_isa(self._isa, self._folder),
            threads=_threads(options),
            folder=self._folder or default_folder(),
            progress=options.progress,
        )


def _threads(options: ExecutorOptions) -> int:
    """The number of threads requested, or the default. Raises BackendError if it is more than 8 per CPU."""
    from mistral_portable_numba.threads import default_threads

    threads, most = options.threads or default_threads(), 8 * (os.cpu_count() or 1)
    if threads > most:
        raise BackendError(f"threads={threads}: at most {most} here, 8 for each CPU; leave the option out")
    return threads


BACKEND = NumbaBackend()

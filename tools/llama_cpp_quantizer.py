"""llama.cpp's own quantizer, through llama-cpp-python: what ours is compared with."""

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["quantize_by_llama_cpp"]


def quantize_by_llama_cpp(
    source: Path,
    destination: Path,
    file_type: str,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    threads: int = 2,
) -> None:
    """Write a GGUF file of floats as one of `file_type` ("MOSTLY_Q4_K_M").

    importance: by GGUF name, the mean squares of each column, as in its importance matrices. Raises RuntimeError.
    """
    import llama_cpp

    _silence()
    settings: Any = llama_cpp.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = threads, getattr(llama_cpp, f"LLAMA_FTYPE_{file_type}")
    if importance is not None:
        # Names and numbers; the last one has none. What they point to lives as long as this call.
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        settings.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    if llama_cpp.llama_model_quantize(str(source).encode(), str(destination).encode(), ctypes.byref(settings)):
        raise RuntimeError(f"llama.cpp does not make {file_type}")


@cache
def _silence() -> object:
    """Its log goes nowhere. The result, which it calls as long as it is there, stays in the cache."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *words: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
    return quiet

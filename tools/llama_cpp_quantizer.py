"""llama.cpp's quantizer, called through llama-cpp-python, for comparison with ours."""

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
    """Quantize a GGUF file of floats to `file_type`, such as "MOSTLY_Q4_K_M".

    importance: by GGUF name, the mean square of the inputs of each column, as in llama.cpp's importance matrices.
    Raises RuntimeError if llama.cpp fails.
    """
    import llama_cpp

    _silence()
    settings: Any = llama_cpp.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = threads, getattr(llama_cpp, f"LLAMA_FTYPE_{file_type}")
    if importance is not None:
        # An empty entry ends the list. The arrays that the entries point to outlive the call.
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        settings.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    if llama_cpp.llama_model_quantize(str(source).encode(), str(destination).encode(), ctypes.byref(settings)):
        raise RuntimeError(f"llama.cpp does not make {file_type}")


@cache
def _silence() -> object:
    """Discard llama.cpp's log. llama.cpp keeps calling the returned function, so the cache keeps it alive."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *words: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
    return quiet

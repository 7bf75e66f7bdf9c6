"""The Numba executor: CPUs, int4 GGUF weights. Importing it imports no framework."""

from mistral_portable_numba.backend import BACKEND

__all__ = ["BACKEND"]

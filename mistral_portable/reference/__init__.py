"""The NumPy executor, float32 or float64: the oracle that defines every op. Always installed."""

from mistral_portable.reference.backend import BACKEND

__all__ = ["BACKEND"]

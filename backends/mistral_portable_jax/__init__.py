"""The JAX executor: a graph as a pure, compiled function, on whatever device JAX has."""

from mistral_portable_jax.backend import BACKEND

__all__ = ["BACKEND"]

"""Weights as JAX arrays, by parameter of a graph; quantized ones are unpacked."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mistral_portable.boundary.shared import gigabytes
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor
from mistral_portable_jax.failures import translated
from mistral_portable_jax.step import Arrays

__all__ = ["read"]


def read(
    graph: Graph,
    weights: Mapping[str, Tensor],
    dtype: str,
    progress: Callable[[str, int, int], None] | None = None,
) -> Arrays:
    """Read every parameter in `dtype`, one after the other, so that only one of them is in memory twice.

    Raises CapacityError if they do not fit into memory, BackendError if the device fails.
    """
    arrays: Arrays = {}
    kind = jnp.dtype(dtype)
    total = sum(int(np.prod(parameter.shape)) for parameter in graph.parameters.values()) * kind.itemsize
    done = 0
    for name, parameter in graph.parameters.items():
        parts = [weights[part].numpy(np.float64 if dtype == "float64" else np.float32) for part in parameter.parts]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        try:
            arrays[name] = jnp.asarray(whole.astype(kind, copy=False))
        except jax.errors.JaxRuntimeError as error:
            subject = f"the model, {gigabytes(total)} of weights in {dtype},"
            raise translated(error, subject, "use --dtype bfloat16 or another backend") from error
        done += arrays[name].nbytes
        if progress is not None:
            progress("weights", done, total)
    return arrays

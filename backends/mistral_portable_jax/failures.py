"""JAX's runtime errors as this package's, by who must act."""

import jax

from mistral_portable.errors import BackendError, CapacityError, MistralPortableError

__all__ = ["translated"]


def translated(error: jax.errors.JaxRuntimeError, subject: str, remedy: str) -> MistralPortableError:
    """Make a CapacityError "SUBJECT does not fit: REMEDY (XLA's words)" where memory was short, else a BackendError."""
    said = str(error).partition("\n")[0]
    if "RESOURCE_EXHAUSTED" in said:
        return CapacityError(f"{subject} does not fit: {remedy} ({said})")
    return BackendError(f"{subject}: JAX's device failed ({said}); load the model again, or choose another backend")

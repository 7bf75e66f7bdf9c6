"""The size of embeddings that a request asks for."""

from mistral_portable.errors import InputError

__all__ = ["check_dimensions"]


def check_dimensions(name: str, asked: int | None, size: int) -> None:
    """Raise InputError if another size than the model's is asked for: a vector that is cut means little unless the
    model was trained for that."""
    if asked is not None and asked != size:
        raise InputError(f"{name}={asked}: this model's embeddings have {size} numbers; leave it out")

"""Converting checkpoints from one format into another: `convert`."""

from mistral_portable.conversion.convert import FORMATS, convert

__all__ = ["FORMATS", "convert"]

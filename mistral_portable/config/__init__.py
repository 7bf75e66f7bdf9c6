"""MistralConfig: the numbers that define a model, and the files that it is read from and written to."""

from mistral_portable.config.model import MistralConfig, Window
from mistral_portable.config.rope_scaling import QueryScale, Yarn

__all__ = ["MistralConfig", "QueryScale", "Window", "Yarn"]

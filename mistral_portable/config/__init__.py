"""MistralConfig: the numbers that define a model, and the files that it is read from and written to."""

from mistral_portable.config.model import MistralConfig, Window
from mistral_portable.config.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    QueryScale,
    RopeScaling,
    Yarn,
)

__all__ = [
    "DynamicScaling",
    "LinearScaling",
    "Llama3Scaling",
    "LongRope",
    "MistralConfig",
    "QueryScale",
    "RopeScaling",
    "Window",
    "Yarn",
]

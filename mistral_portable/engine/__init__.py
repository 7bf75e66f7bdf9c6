"""The engine: loads a checkpoint onto a backend, and generates."""

from mistral_portable.engine.generation import Generation, Timings
from mistral_portable.engine.load import load
from mistral_portable.engine.model import Model
from mistral_portable.engine.stream import AsyncTextStreamer, TextStreamer

__all__ = ["AsyncTextStreamer", "Generation", "Model", "TextStreamer", "Timings", "load"]

"""Mistral models on whatever machine you have: one graph, interchangeable executors, the same answers everywhere.

import mistral_portable as mp
model = mp.load("tiny")                      # or a folder, a .gguf file, a hub id
print(model.generate("Once upon a time").text)
"""

from mistral_portable.config import MistralConfig
from mistral_portable.conversion import convert
from mistral_portable.engine import AsyncTextStreamer, Generation, Model, TextStreamer, Timings, load
from mistral_portable.errors import MistralPortableError
from mistral_portable.evaluation import Perplexity, perplexity
from mistral_portable.quantization import quantize
from mistral_portable.sampling import SamplingParams

__all__ = [
    "AsyncTextStreamer",
    "Generation",
    "MistralConfig",
    "MistralPortableError",
    "Model",
    "Perplexity",
    "SamplingParams",
    "TextStreamer",
    "Timings",
    "__version__",
    "convert",
    "load",
    "perplexity",
    "quantize",
]

__version__ = "0.1.0"

"""Mistral models on whatever machine you have: one graph, interchangeable executors, the same answers everywhere.

import mistral_portable as mp
model = mp.load("tiny")                      # or a folder, a .gguf file, a hub id
print(model.generate("Once upon a time").text)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_PACKAGES = {
    "config": ("MistralConfig",),
    "conversion": ("convert",),
    "engine": ("AsyncTextStreamer", "Generation", "Model", "TextStreamer", "Timings", "load"),
    "errors": ("MistralPortableError",),
    "evaluation": ("Perplexity", "perplexity"),
    "quantization": ("quantize",),
    "sampling": ("SamplingParams",),
}
_HOMES = {name: package for package, names in _PACKAGES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a name when it is first used (PEP 562): a command that needs no model starts without NumPy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

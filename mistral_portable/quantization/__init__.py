"""Writing checkpoints as quantized GGUF files: `quantize`."""

from mistral_portable.quantization.mixtures import MIXTURES
from mistral_portable.quantization.quantize import quantize

__all__ = ["MIXTURES", "quantize"]

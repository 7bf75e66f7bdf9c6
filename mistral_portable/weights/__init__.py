"""Checkpoints: `open_checkpoint` gives a config, lazy tensors under HF names, and the tokenizer's source."""

from mistral_portable.weights.open import open_checkpoint
from mistral_portable.weights.quant import QuantTensor
from mistral_portable.weights.source import Checkpoint, DenseTensor, Tensor

__all__ = ["Checkpoint", "DenseTensor", "QuantTensor", "Tensor", "open_checkpoint"]

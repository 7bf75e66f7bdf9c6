"""Attention over pages, by several kernels behind one protocol."""

from mistral_portable_torch.attention.choice import choose
from mistral_portable_torch.attention.eager import Eager
from mistral_portable_torch.attention.kernel import Attention, Planned, Sizes

__all__ = ["Attention", "Eager", "Planned", "Sizes", "choose"]

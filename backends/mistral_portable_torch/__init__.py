"""The torch executor: NVIDIA GPUs; CPUs and Apple's Metal too."""

from mistral_portable_torch.backend import BACKEND

__all__ = ["BACKEND"]

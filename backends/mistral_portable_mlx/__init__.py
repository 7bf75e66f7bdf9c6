"""The MLX executor: Apple Silicon's GPU; MLX's CPU and CUDA builds too."""

from mistral_portable_mlx.backend import BACKEND

__all__ = ["BACKEND"]

"""Operations on numbers one by one: computed in float32, rounded once; on a GPU each is one kernel."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

__all__ = ["Elementwise", "elementwise"]


class Elementwise:
    """compiled: let `torch.compile` make one kernel of each, for any number of tokens. Else operation by operation."""

    def __init__(self, compiled: bool) -> None:
        def prepared(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return torch.compile(function, dynamic=True) if compiled else function

        self.rms_norm = prepared(_rms_norm)
        self.turn = prepared(_turn)
        self.silu_mul = prepared(_silu_mul)


@cache
def elementwise(compiled: bool) -> Elementwise:
    """One for all programs: a kernel is compiled once in a process."""
    return Elementwise(compiled)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, H], weight [H]: x / sqrt(mean(x^2) + eps) * weight"""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads * d], cos and sin [T, 1, 2, d / 2] of `inputs.angles`."""
    pairs = x.float().unflatten(-1, (-1, *cos.shape[2:]))
    return (pairs * cos + pairs.flip(-2) * sin).flatten(1).to(x.dtype)


def _silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """[T, I]: gate / (1 + exp(-gate)) * up"""
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate.dtype)

"""RMS norm, RoPE, SwiGLU and what is computed with them, in float32 and rounded once; on CUDA each is one kernel.

On a CPU they take 32 rows at a time, so that intermediate results stay in the CPU's cache: silu_mul of 512 rows of
Mistral 7B's 14336 columns in bfloat16 took 7 ms so, and 22 ms on all rows at once (2 Xeon cores).
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mistral_portable_torch.attempt import Attempt

__all__ = ["Elementwise", "Fused", "Plain", "Turn", "elementwise", "write"]

_ROWS = 32


class Turn(NamedTuple):
    """A rotation at the positions of a step: cos and sin float32 [T, 1, 2, d / 2] of `Rotation.signed_table`."""

    cos: Tensor
    sin: Tensor


class Elementwise(Protocol):
    """The operations. T: tokens of the step. Columns of a row lie side by side; rows need not."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, H], weight [H]: x / sqrt(mean(x^2) + eps) * weight"""

    def add_rms_norm(self, a: Tensor, b: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """a, b [T, H] -> their sum, rounded, and its RMS norm."""

    def rope(self, x: Tensor, turn: Turn) -> Tensor:
        """x [T, heads * d] -> the same, each head turned."""

    def rope_into(
        self, q: Tensor, k: Tensor, v: Tensor, turns: tuple[Turn, Turn], keys: Tensor, values: Tensor, slots: Tensor
    ) -> Tensor:
        """Turn queries [T, h * d] by the first turn, and return them; write keys [T, g * d], turned by the second one,
        and values [T, g * d] to their slots, int64 [T], of the pools [pages, page_size, g, d]."""

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """[T, I]: gate / (1 + exp(-gate)) * up"""


class Plain:
    """By torch's operations, on any device. in_pieces: whether they take some rows at a time."""

    def __init__(self, *, in_pieces: bool = False) -> None:
        self.rms_norm = _in_pieces(_rms_norm, 1) if in_pieces else _rms_norm
        self._turned = _in_pieces(_rope, 3) if in_pieces else _rope
        self.silu_mul = _in_pieces(_silu_mul, 2) if in_pieces else _silu_mul

    def add_rms_norm(self, a: Tensor, b: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = a + b
        return total, self.rms_norm(total, weight, eps)

    def rope(self, x: Tensor, turn: Turn) -> Tensor:
        return self._turned(x, *turn)

    def rope_into(
        self, q: Tensor, k: Tensor, v: Tensor, turns: tuple[Turn, Turn], keys: Tensor, values: Tensor, slots: Tensor
    ) -> Tensor:
        write(keys, slots, self.rope(k, turns[1]))
        write(values, slots, v)
        return self.rope(q, turns[0])


class Fused:
    """One kernel each, by `elementwise_kernels`; where these cannot be compiled, as `plain` does it."""

    def __init__(self, plain: Elementwise) -> None:
        self._plain = plain
        self._attempt = Attempt("RMS norm, RoPE and SwiGLU take several kernels each, which is slow")
        self.rope = plain.rope  # of attention whose weights are asked for: no decoding step that has to be fast

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        found: Tensor = self._run("rms_norm", x, weight, eps)
        return found

    def add_rms_norm(self, a: Tensor, b: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self._run("add_rms_norm", a, b, weight, eps)
        return found

    def rope_into(
        self, q: Tensor, k: Tensor, v: Tensor, turns: tuple[Turn, Turn], keys: Tensor, values: Tensor, slots: Tensor
    ) -> Tensor:
        found: Tensor = self._run("rope_into", q, k, v, turns, keys, values, slots)
        return found

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        found: Tensor = self._run("silu_mul", gate, up)
        return found

    def _run(self, name: str, *arguments: Any) -> Any:
        def compiled() -> Any:
            from mistral_portable_torch import elementwise_kernels

            return getattr(elementwise_kernels, name)(*arguments)

        return self._attempt.run(arguments[0].device, compiled, lambda: getattr(self._plain, name)(*arguments))


@cache
def elementwise(device: str) -> Elementwise:
    """The operations for a kind of device, shared by all programs."""
    return Fused(Plain()) if device == "cuda" else Plain(in_pieces=device == "cpu")


def write(pool: Tensor, slots: Tensor, x: Tensor) -> None:
    """Write keys or values [T, heads * d] to their slots [T] of a pool: int64, as each write would copy int32 ones."""
    pool.flatten(0, 1)[slots] = x.view(-1, *pool.shape[2:])


def _in_pieces(function: Callable[..., Tensor], by_row: int) -> Callable[..., Tensor]:
    """Run the function on _ROWS rows at a time. by_row: number of leading arguments that have a row for each token."""

    def run(*arguments: Any) -> Tensor:
        if len(arguments[0]) <= _ROWS:
            return function(*arguments)
        rows, whole = arguments[:by_row], arguments[by_row:]
        return torch.cat([function(*piece, *whole) for piece in zip(*(x.split(_ROWS) for x in rows), strict=True)])

    return run


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = x.float().unflatten(-1, (-1, *cos.shape[2:]))
    return (pairs * cos + pairs.flip(-2) * sin).flatten(1).to(x.dtype)


def _silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate.dtype)

"""torch's scaled_dot_product_attention with a mask: on any device."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from mistral_portable_torch.attention.kernel import Piece, Pieces, Planned
from mistral_portable_torch.reads import GroupReads, Integers

__all__ = ["SDPA"]


@dataclass(frozen=True)
class _Together:
    """A decoding step that may be recorded. columns: pages that are read for each sequence."""

    columns: int
    page: int


@dataclass(frozen=True)
class _Batch:
    """pages [S * columns]. mask: bool [S, 1, 1, N], whether each sequence's query sees the key in each slot."""

    pages: Tensor
    mask: Tensor


class SDPA(Pieces):
    """Masks the pages of each sequence by position, with a boolean mask.

    The query heads that share a key are passed as further queries of one head. torch's kernels for masks on a GPU know
    no grouped heads: without this its plain one would run, in float32, on a copy of the keys for each query head.

    A step that may be recorded takes all its sequences at once: their pages are gathered, however they lie in the pool.
    """

    def __init__(self, *, cuda: bool = False) -> None:
        self._choose = _without_cudnn if cuda else _as_torch_chooses

    def plan(self, reads: GroupReads, recorded: bool) -> Planned[Integers]:
        if not recorded:
            return super().plan(reads, recorded)
        table = reads.table(recorded)
        arrays = {"first": reads.oldest, "positions": reads.plan.positions, "begins": reads.begins, "table": table}
        return Planned(_Together(table.shape[1], reads.page), arrays)

    def prepare(self, planned: Planned[Tensor]) -> Any:
        fixed, arrays = planned.fixed, planned.arrays
        if not isinstance(fixed, _Together):
            return super().prepare(planned)
        offsets = torch.arange(fixed.columns * fixed.page, dtype=torch.int32, device=arrays["begins"].device)
        held = arrays["begins"][:, None] + offsets
        mask = (held >= arrays["first"][:, None]) & (held <= arrays["positions"][:, None])
        return _Batch(arrays["table"].flatten(), mask[:, None, None])

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, prepared: Any, scale: float) -> Tensor:
        with self._choose():
            if isinstance(prepared, _Batch):
                return _together(q, keys, values, prepared, scale)
            out = torch.empty_like(q)
            for piece in prepared:
                out[piece.tokens] = _one(q[piece.tokens], keys, values, piece, scale)
            return out

    def score_bytes(self, heads: int, groups: int) -> int:
        return 6 * heads // groups + 3  # the mask, and a copy of it in the keys' dtype, once for all groups


def _one(q: Tensor, keys: Tensor, values: Tensor, piece: Piece, scale: float) -> Tensor:
    """q [T, h, d] -> [T, h, d]"""
    own_keys, own_values = (piece.of(pool)[None].transpose(1, 2) for pool in (keys, values))
    groups = own_keys.shape[1]
    folded = q.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(1, 2)[None]  # [1, g, h / g * T, d]
    mask = piece.mask.repeat(q.shape[1] // groups, 1)
    heads = scaled_dot_product_attention(folded, own_keys, own_values, attn_mask=mask, scale=scale)
    return heads[0].unflatten(1, (-1, len(q))).permute(2, 0, 1, 3).flatten(1, 2)


def _together(q: Tensor, keys: Tensor, values: Tensor, batch: _Batch, scale: float) -> Tensor:
    """q [S, h, d] -> [S, h, d]"""
    own_keys, own_values = (
        pool.index_select(0, batch.pages).unflatten(0, (len(q), -1)).flatten(1, 2).transpose(1, 2)
        for pool in (keys, values)
    )
    folded = q.unflatten(1, (own_keys.shape[1], -1))
    return scaled_dot_product_attention(folded, own_keys, own_values, attn_mask=batch.mask, scale=scale).flatten(1, 2)


_CHOICE = threading.Lock()
"""The choice of kernels is one for the whole process."""


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Leave out cuDNN's kernel: it makes a plan for each new shape, 0.44 s on a B200 (FunASR, issue 3704)."""
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with _CHOICE, sdpa_kernel(kernels):
        yield


@contextmanager
def _as_torch_chooses() -> Iterator[None]:
    yield

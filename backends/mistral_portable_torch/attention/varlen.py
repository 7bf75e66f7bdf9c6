"""torch's own varlen_attn, which has the flash kernels: on any CUDA GPU from Ampere on, without another package.

Its page tables need flash-attn 3 or 4, its offsets do not. A chunk's keys are gathered in order of time, which costs
little beside what a chunk computes. A decoding step moves no key: each page that it reads is a text of its own, the
query goes to all of them, and the partial results are added up by their log-sum-exp, as in flash decoding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest

from mistral_portable_torch.attention.kernel import Planned
from mistral_portable_torch.reads import GroupReads, Integers

__all__ = ["Varlen"]


@dataclass(frozen=True)
class _Chunk:
    most_queries: int
    most_keys: int
    keys: int
    window: tuple[int, int]


@dataclass(frozen=True)
class _Decode:
    pages: int
    page: int


class Varlen:
    """torch's `varlen_attn`, FlashAttention on sequences laid end to end."""

    recordable = True

    def __init__(self, varlen: Callable[..., Any]) -> None:
        """torch.nn.attention.varlen.varlen_attn"""
        self._varlen = varlen

    def plan(self, reads: GroupReads, recorded: bool) -> Planned[Integers]:
        return self._plan_decode(reads, recorded) if reads.most_tokens == 1 else self._plan_chunk(reads)

    def prepare(self, planned: Planned[Tensor]) -> Planned[Tensor]:
        return planned

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, prepared: Planned[Tensor], scale: float) -> Tensor:
        fixed, integers = prepared.fixed, prepared.arrays
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        grouped = q.shape[1] != keys.shape[1]
        if isinstance(fixed, _Decode):
            return self._decode(q, keys, values, fixed, integers, scale, grouped)
        assert isinstance(fixed, _Chunk)
        slots = integers["slots"]
        out: Tensor = self._varlen(
            q,
            keys[slots],
            values[slots],
            integers["starts"],
            integers["key_starts"],
            fixed.most_queries,
            fixed.most_keys,
            scale=scale,
            window_size=fixed.window,
            enable_gqa=grouped,
        )
        return out

    def _plan_chunk(self, reads: GroupReads) -> Planned[Integers]:
        slots = [reads.slots(s) for s in range(len(reads.plan.lanes))]
        counts = [len(some) for some in slots]
        window = (-1 if reads.window is None else reads.window - 1, 0)
        return Planned(
            _Chunk(reads.most_tokens, max(counts), sum(counts), window),
            {
                "slots": np.concatenate(slots),
                "starts": reads.plan.query_starts,
                "key_starts": np.cumsum([0, *counts]).astype(np.int32),
            },
        )

    def _plan_decode(self, reads: GroupReads, recorded: bool) -> Planned[Integers]:
        """A text for each page of each sequence: where in the pool it starts, and how many keys it has.

        Columns beyond a sequence's own have none.
        """
        page, table = reads.page, reads.table(recorded)
        starts = table * np.int32(page)
        counts = np.clip(reads.keys[:, None] - page * np.arange(table.shape[1]), 0, page).astype(np.int32)
        starts[:, 0] += reads.hidden  # keys of the oldest page that have left the window
        counts[:, 0] -= reads.hidden
        return Planned(
            _Decode(table.shape[1], page),
            {
                "starts": np.arange(table.size + 1, dtype=np.int32),
                "key_starts": np.append(starts.ravel(), np.int32(0)),
                "keys": counts.ravel(),
            },
        )

    def _decode(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        fixed: _Decode,
        integers: Mapping[str, Tensor],
        scale: float,
        grouped: bool,
    ) -> Tensor:
        out, lse = self._varlen(
            q.repeat_interleave(fixed.pages, 0),
            keys,
            values,
            integers["starts"],
            integers["key_starts"],
            1,
            fixed.page,
            return_aux=AuxRequest(lse=True),
            scale=scale,
            enable_gqa=grouped,
            seqused_k=integers["keys"],
        )
        empty = (integers["keys"] == 0).view(-1, fixed.pages, 1)
        # The kernels give [h, texts], whatever varlen_attn's documentation says of T_q and H_q.
        weight = lse.transpose(0, 1).unflatten(0, (-1, fixed.pages)).masked_fill(empty, float("-inf"))
        parts = out.unflatten(0, (-1, fixed.pages)).float().masked_fill(empty[..., None], 0)
        merged: Tensor = (parts * torch.softmax(weight, dim=1)[..., None]).sum(1)
        return merged.to(q.dtype)

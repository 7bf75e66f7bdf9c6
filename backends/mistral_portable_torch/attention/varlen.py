"""torch's own varlen_attn, which contains flash kernels: on any CUDA GPU from Ampere on, without another package.

Its page tables need flash-attn 3 or 4; its offsets do not. The keys of a prefill chunk are gathered in order of time,
which costs little beside the chunk's own work. A decoding step copies no key: each page is passed as a sequence of its
own, the query attends to each, and the partial results are merged by log-sum-exp, as in flash decoding.
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
    max_queries: int
    max_keys: int
    keys: int
    window: tuple[int, int]


@dataclass(frozen=True)
class _Decode:
    pages: int
    page: int


class Varlen:
    """Attention by torch's `varlen_attn`: FlashAttention on sequences that lie end to end."""

    recordable = True

    def __init__(self, varlen: Callable[..., Any]) -> None:
        """torch.nn.attention.varlen.varlen_attn"""
        self._varlen = varlen

    def plan(self, reads: GroupReads, recorded: bool) -> Planned[Integers]:
        return self._plan_decode(reads, recorded) if reads.max_queries == 1 else self._plan_chunk(reads)

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
            integers["query_starts"],
            integers["key_starts"],
            fixed.max_queries,
            fixed.max_keys,
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
            _Chunk(reads.max_queries, max(counts), sum(counts), window),
            {
                "slots": np.concatenate(slots),
                "query_starts": reads.plan.query_starts,
                "key_starts": np.cumsum([0, *counts]).astype(np.int32),
            },
        )

    def _plan_decode(self, reads: GroupReads, recorded: bool) -> Planned[Integers]:
        """Plan a kernel's sequence for each page of each sequence: its first slot in the pool, and its number of keys.

        Pages of padding have no keys.
        """
        page, table = reads.page, reads.table(recorded)
        first_slots = table * np.int32(page)
        counts = np.clip(reads.keys[:, None] - page * np.arange(table.shape[1]), 0, page).astype(np.int32)
        first_slots[:, 0] += reads.hidden  # skips keys of the oldest page that have left the window
        counts[:, 0] -= reads.hidden
        return Planned(
            _Decode(table.shape[1], page),
            {
                "query_starts": np.arange(table.size + 1, dtype=np.int32),
                "key_starts": np.append(first_slots.ravel(), np.int32(0)),
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
            integers["query_starts"],
            integers["key_starts"],
            1,
            fixed.page,
            return_aux=AuxRequest(lse=True),
            scale=scale,
            enable_gqa=grouped,
            seqused_k=integers["keys"],
        )
        empty = (integers["keys"] == 0).view(-1, fixed.pages, 1)
        # lse is [h, sequences], although varlen_attn's documentation says otherwise.
        weight = lse.transpose(0, 1).unflatten(0, (-1, fixed.pages)).masked_fill(empty, float("-inf"))
        parts = out.unflatten(0, (-1, fixed.pages)).float().masked_fill(empty[..., None], 0)
        merged: Tensor = (parts * torch.softmax(weight, dim=1)[..., None]).sum(1)
        return merged.to(q.dtype)

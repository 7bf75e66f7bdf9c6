"""torch's own flash kernels for ragged sequences: on any CUDA GPU from Ampere on, without another package.

Their op is called itself: its function `torch.nn.attention.varlen.varlen_attn` has windows and lengths since torch 2.12
only, the op since 2.5 (`flash_forward` asks it).

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

from mistral_portable_torch.attention.kernel import Planned, Sizes, gathered_bytes
from mistral_portable_torch.reads import GroupReads, Integers

__all__ = ["Varlen", "flash_forward"]

_NEEDED = {"scale", "window_size_left", "window_size_right", "seqused_k"}


def flash_forward() -> Callable[..., Any] | None:
    """torch's op `aten::_flash_attention_forward`, or None if this torch's lacks an argument that is needed here."""
    op = getattr(torch.ops.aten, "_flash_attention_forward", None)
    if op is None or not {argument.name for argument in op.default._schema.arguments}.issuperset(_NEEDED):
        return None
    found: Callable[..., Any] = op
    return found


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
    """FlashAttention on sequences that lie end to end."""

    recordable = 8

    def __init__(self, forward: Callable[..., Any]) -> None:
        """The op of `flash_forward`."""
        self._forward = forward

    def plan(self, reads: GroupReads, recorded: bool) -> Planned[Integers]:
        return self._plan_decode(reads, recorded) if reads.max_queries == 1 else self._plan_chunk(reads)

    def prepare(self, planned: Planned[Tensor]) -> Planned[Tensor]:
        return planned

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, prepared: Planned[Tensor], scale: float) -> Tensor:
        fixed, integers = prepared.fixed, prepared.arrays
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        if isinstance(fixed, _Decode):
            return self._decode(q, keys, values, fixed, integers, scale)
        assert isinstance(fixed, _Chunk)
        slots = integers["slots"]
        starts, most = (integers["query_starts"], integers["key_starts"]), (fixed.max_queries, fixed.max_keys)
        left, right = fixed.window
        out: Tensor = self._forward(
            q,
            keys.index_select(0, slots),
            values.index_select(0, slots),
            *starts,
            *most,
            0.0,  # dropout
            left < 0,  # causal: the flag for a window without an end on the left
            False,  # return_debug_mask
            scale=scale,
            window_size_left=left,
            window_size_right=right,
        )[0]
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
    ) -> Tensor:
        out, lse, *_ = self._forward(
            q.repeat_interleave(fixed.pages, 0),
            keys,
            values,
            integers["query_starts"],
            integers["key_starts"],
            1,
            fixed.page,
            0.0,
            False,
            False,
            scale=scale,
            window_size_left=-1,
            window_size_right=-1,
            seqused_k=integers["keys"],
        )
        empty = (integers["keys"] == 0).view(-1, fixed.pages, 1)
        # lse is [h, sequences]
        weight = lse.transpose(0, 1).unflatten(0, (-1, fixed.pages)).masked_fill(empty, float("-inf"))
        parts = out.unflatten(0, (-1, fixed.pages)).float().masked_fill(empty[..., None], 0)
        merged: Tensor = (parts * torch.softmax(weight, dim=1)[..., None]).sum(1)
        return merged.to(q.dtype)

    def scratch_bytes(self, sizes: Sizes, heads: int, groups: int, head_dim: int, itemsize: int) -> int:
        if not sizes.columns:
            return gathered_bytes(sizes, groups, head_dim, itemsize)
        # Queries and results of pages, and these in float32, twice; log-sum-exps, and three times what is made of them.
        return sizes.tokens * sizes.columns * heads * (head_dim * (2 * itemsize + 8) + 16)

"""The flash-attn package: its kernels read a sequence through its page table, and mask keys by index."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mistral_portable_torch.attention.kernel import Planned, Sizes
from mistral_portable_torch.reads import GroupReads, Integers

__all__ = ["FlashAttn"]


@dataclass(frozen=True)
class _Fixed:
    decodes: bool
    max_queries: int
    max_keys: int
    window: tuple[int, int]


class FlashAttn:
    """The page table lists a sequence's pages in order of time, from that of its oldest visible key on.

    So the index of a key is its position minus a constant of the sequence, and the kernels' own causal mask and window
    (window_size=(W - 1, 0), both ends inclusive) hide exactly the keys that are not visible. A single query without a
    window sees all keys; said so (no mask, no window), the kernels read a key once for all query heads of its group.
    """

    recordable = 8

    def __init__(self, varlen: Callable[..., Tensor], with_kvcache: Callable[..., Tensor] | None) -> None:
        """flash_attn's flash_attn_varlen_func, and flash_attn_with_kvcache, which splits the keys of a single query
        also where there is a window; None where it makes the host wait, which no recorded step may do."""
        self._varlen, self._with_kvcache = varlen, with_kvcache

    def plan(self, reads: GroupReads, recorded: bool) -> Planned[Integers]:
        table, keys = reads.table(recorded), reads.keys
        window = (-1, -1) if reads.window is None else (reads.window - 1, 0)
        max_keys = table.shape[1] * reads.page
        return Planned(
            _Fixed(reads.max_queries == 1, reads.max_queries, max_keys, window),
            {
                "table": table,
                "keys": keys,
                "query_starts": reads.plan.query_starts,
                "key_starts": np.cumsum([0, *keys]).astype(np.int32),
            },
        )

    def prepare(self, planned: Planned[Tensor]) -> Planned[Tensor]:
        return planned

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, prepared: Planned[Tensor], scale: float) -> Tensor:
        fixed, integers = prepared.fixed, prepared.arrays
        assert isinstance(fixed, _Fixed)
        common: dict[str, Any] = {
            "block_table": integers["table"],
            "softmax_scale": scale,
            "causal": not fixed.decodes or fixed.window != (-1, -1),
            "window_size": fixed.window,
        }
        if fixed.decodes and self._with_kvcache is not None:
            return self._with_kvcache(q[:, None], keys, values, cache_seqlens=integers["keys"], **common)[:, 0]
        starts = integers["query_starts"], integers["key_starts"]
        return self._varlen(q, keys, values, *starts, fixed.max_queries, fixed.max_keys, **common)

    def scratch_bytes(self, sizes: Sizes, heads: int, groups: int, head_dim: int, itemsize: int) -> int:
        splits = min(128, sizes.columns * sizes.page // 64)  # flash-attn's most; each has at least 64 keys
        return sizes.tokens * splits * heads * (head_dim + 1) * 4

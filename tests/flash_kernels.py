"""Stand-ins for the flash kernels of GPUs and for our own: their documented behaviour in plain operations.

Masks are by index. Queries and keys of a text are aligned at their ends (flash-attn since 2.1): query i of T sees key j
of K if `i + K - T - left <= j <= i + K - T + right`; -1 means no bound. A text without keys gives zeros and a
log-sum-exp of +inf. Memory after a text's keys is not read.

Sources: docstrings of flash_attn_varlen_func and flash_attn_with_kvcache (flash-attn 2.8), of
torch.nn.attention.varlen.varlen_attn (torch 2.13), which calls `flash_forward`, aten::_flash_attention_forward.
"""

import torch
from torch import Tensor

__all__ = ["flash_attn_varlen_func", "flash_attn_with_kvcache", "flash_forward", "paged_attend"]


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    block_table: Tensor,
) -> Tensor:
    """q [all T, h, d], pools of pages [pages, page, g, d], tables [S, pages of a text]."""
    left = window_size[0]
    assert causal or max_seqlen_q == 1, "queries would see what follows them"
    window_size = (left, 0) if causal else window_size
    queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    assert max(queries) <= max_seqlen_q
    assert max(keys) <= max_seqlen_k <= block_table.shape[1] * k.shape[1]
    outs = []
    for s, part in enumerate(q.split(queries)):
        own_k, own_v = (pool[block_table[s].long()].flatten(0, 1)[: keys[s]] for pool in (k, v))
        outs.append(_attend(part, own_k, own_v, softmax_scale, window_size)[0])
    return torch.cat(outs)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    cache_seqlens: Tensor,
    block_table: Tensor,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
) -> Tensor:
    """q [S, T, h, d] -> the same."""
    starts = torch.arange(len(q) + 1) * q.shape[1]
    key_starts = torch.cat([torch.zeros(1, dtype=torch.int32), cache_seqlens.cumsum(0)])
    out = flash_attn_varlen_func(
        q.flatten(0, 1),
        k_cache,
        v_cache,
        starts,
        key_starts,
        q.shape[1],
        block_table.shape[1] * k_cache.shape[1],
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        block_table=block_table,
    )
    return out.unflatten(0, q.shape[:2])


def flash_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """query [all T, h, d], key, value [all K, g, d]; seqused_k: keys of each text from its start on."""
    assert (dropout_p, return_debug_mask) == (0, False)
    queries = cum_seq_q.diff().tolist()
    keys = (cum_seq_k.diff() if seqused_k is None else seqused_k).tolist()
    assert max(queries) <= max_q
    assert max(keys) <= max_k
    window = window_size_left, 0 if is_causal else window_size_right
    parts = []
    for part, start, count in zip(query.split(queries), cum_seq_k.tolist(), keys, strict=False):
        assert 0 <= start <= start + count <= len(key)
        own = slice(start, start + count)
        parts.append(_attend(part, key[own], value[own], scale, window))
    return torch.cat([part for part, _ in parts]), torch.cat([lse for _, lse in parts], dim=1)


def paged_attend(
    q: Tensor, keys: Tensor, values: Tensor, table: Tensor, ends: Tensor, hidden: Tensor, scale: float, splits: int
) -> Tensor:
    """`paged_kernels.attend`: q [S, h, d] -> the same."""
    assert splits >= 1
    assert bool((hidden >= 0).all() and (hidden < keys.shape[1]).all() and (hidden < ends).all())
    assert int(ends.max()) <= table.shape[1] * keys.shape[1]
    outs = []
    for s in range(len(q)):
        own_k, own_v = (pool[table[s].long()].flatten(0, 1)[hidden[s] : ends[s]] for pool in (keys, values))
        outs.append(_attend(q[s : s + 1], own_k, own_v, scale, (-1, -1))[0])
    return torch.cat(outs)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """q [T, h, d], k, v [K, g, d] -> [T, h, d] and the log-sum-exp [h, T]."""
    if not len(k):
        return torch.zeros_like(q), torch.full((q.shape[1], len(q)), torch.inf)
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("thd,khd->htk", q.float() * scale, k.float().repeat_interleave(group, 1))
    distance = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
    left, right = window
    hidden = (distance < -right if right >= 0 else distance < -len(k)) | (
        distance > left if left >= 0 else distance > len(k) + len(q)
    )
    scores = scores.masked_fill(hidden, -torch.inf)
    out = torch.einsum("htk,khd->thd", scores.softmax(-1), v.float().repeat_interleave(group, 1))
    return out.to(q.dtype), scores.logsumexp(-1)

"""Segments of attention: how threads share them out, and the memory that they need. Imports no Numba."""

from mistral_portable_numba.layouts import PAGE_SIZE, head_width, round_up

__all__ = ["SEGMENT", "attention_scratch", "part_bytes", "takes_all_heads", "tokens_per_item"]

SEGMENT = 8
"""Pages whose keys and values attention adds up on their own, before it merges them with those of other segments."""


def tokens_per_item(group: int) -> int:
    """Query tokens of a piece of work if `group` query heads share a key/value head: about 64 rows."""
    return max(1, 64 // group)


def takes_all_heads(tokens: int, heads: int) -> bool:
    """Whether attention works on all heads of so many tokens of a sequence together, segment by segment."""
    return tokens == 1 or tokens * heads <= 128


def part_bytes(tokens: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Bytes of a segment's part, of all heads: for each row outputs, a maximum and a sum in float32."""
    return 4 * kv_heads * round_up(tokens * (heads // kv_heads), 4) * (head_width(head_dim) + 2)


def attention_scratch(heads: int, kv_heads: int, head_dim: int) -> int:
    """Bytes of scratch per thread: two parts of a key/value head, queries, the keys or values of a page in float32, and
    for each row 64 weights and a factor, for four more 64 weights."""
    group = heads // kv_heads
    part = part_bytes(tokens_per_item(group), group, 1, head_dim)
    together = part_bytes(max(1, 128 // heads), heads, kv_heads, head_dim)
    rows = round_up(tokens_per_item(group) * group, 4)
    return 2 * part + max(part, together) + 4 * PAGE_SIZE * (head_width(head_dim) + rows + 4) + 4 * rows + 64

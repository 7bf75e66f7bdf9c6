"""Our own kernel for decoding steps, which reads pages through their table, beside another kernel for prompts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mistral_portable_torch.attention.kernel import Attention, Planned, Sizes
from mistral_portable_torch.occupancy import PROGRAMS
from mistral_portable_torch.reads import GroupReads, Integers

__all__ = ["Paged", "splits_of"]

_LEAST, _MOST = 64, 1024  # keys of a split: fewer are not worth a program, more make a long text's program the last one


@dataclass(frozen=True)
class _Decode:
    splits: int


@dataclass(frozen=True)
class _Prepared:
    table: Tensor
    ends: Tensor
    hidden: Tensor
    splits: int


class Paged:
    """A step of one token per sequence takes `decode`; all others are `prompts`'.

    The number of splits follows from shapes, so that a recorded step stays valid while its texts grow.
    """

    recordable = 8

    def __init__(self, decode: Callable[..., Tensor], prompts: Attention) -> None:
        """decode: `paged_kernels.attend`. prompts: the kernel for steps of more tokens."""
        self._decode, self._prompts = decode, prompts

    def plan(self, reads: GroupReads, recorded: bool) -> Planned[Integers]:
        if reads.max_queries > 1:
            return self._prompts.plan(reads, recorded)
        table = reads.table(recorded)
        splits = splits_of(len(table), reads.spec.num_key_value_heads, table.shape[1] * reads.page)
        return Planned(_Decode(splits), {"table": table, "ends": reads.keys, "hidden": reads.hidden})

    def prepare(self, planned: Planned[Tensor]) -> Any:
        if isinstance(planned.fixed, _Decode):
            return _Prepared(**planned.arrays, splits=planned.fixed.splits)
        return self._prompts.prepare(planned)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, prepared: Any, scale: float) -> Tensor:
        if isinstance(prepared, _Prepared):
            lengths = prepared.table, prepared.ends, prepared.hidden
            return self._decode(q, keys, values, *lengths, scale, prepared.splits)
        return self._prompts.attend(q, keys, values, prepared, scale)

    def scratch_bytes(self, sizes: Sizes, heads: int, groups: int, head_dim: int, itemsize: int) -> int:
        if not sizes.columns:
            return self._prompts.scratch_bytes(sizes, heads, groups, head_dim, itemsize)
        splits = splits_of(sizes.tokens, groups, sizes.columns * sizes.page)
        return sizes.tokens * heads * splits * (head_dim + 2) * 4 if splits > 1 else 0


def splits_of(sequences: int, groups: int, slots: int) -> int:
    """Parts of the keys of each sequence: a power of two. slots: those of a row of the page table.

    Example, 8 key/value heads: one sequence of 4,096 slots is read in 32 parts of 128; 32 of them, in 4 each of 1,024.
    """
    wanted = max(-(-PROGRAMS // (sequences * groups)), -(-slots // _MOST))
    return 1 << (min(wanted, -(-slots // _LEAST)) - 1).bit_length()

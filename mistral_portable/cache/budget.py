"""CacheBudget: how many bytes the pages of lanes, and those that are kept, may take."""

from dataclasses import dataclass

__all__ = ["CacheBudget"]


@dataclass(frozen=True)
class CacheBudget:
    """limit: bytes of all slots in use. slot_bytes: of a slot in each layer group (`Program.slot_bytes`).

    strict: lanes, too, stay within the limit; else they take what they need, and only what is kept gives way to them.
    """

    limit: int
    slot_bytes: tuple[int, ...]
    strict: bool = False

"""CacheSpec: the sizes of a model's cache, on which manager and executor agree before the first step."""

from dataclasses import dataclass

from mistral_portable.config import MistralConfig, Window
from mistral_portable.errors import InputError

__all__ = ["CacheSpec", "LayerGroup"]


@dataclass(frozen=True)
class LayerGroup:
    """Layers that share one window, and therefore pages.

    window: None, or the number of positions that a query sees. layers: their indices.
    page_size: slots of a page; a slot holds the key and the value of one position in each layer of the group.
    ring: whether a page is a whole lane; position p then lies in offset `p % page_size` of the lane's only page.
    Else it lies in page `p // page_size` of the lane's table, at that offset.
    """

    window: Window
    layers: tuple[int, ...]
    page_size: int
    ring: bool


@dataclass(frozen=True)
class CacheSpec:
    """Sizes of the cache. Each layer group has a pool of pages; a lane holds one sequence in a table of pages.

    Example: pages of 4 slots, a lane of 6 tokens whose table is [5, 2]: positions 0..3 lie in page 5, that is in the
    slots 20..23 of the pool, positions 4 and 5 in the slots 8 and 9. With window 3 the next query, 6, sees
    4, 5 and 6: no position of page 5, which the lane then lets go of.

    Where pages are whole lanes (rings), a windowed group has `window + max_chunk - 1` slots, but at most `max_context`,
    and a full one `max_context`: a chunk of c tokens is written before it is read, and its first query still sees
    window - 1 older keys. Example: window 3, max_chunk 2, max_context 100 -> 4 slots. With positions 0..5 cached, the
    slots hold 4 5 2 3. The chunk 6, 7 overwrites 2 and 3; query 6 sees 4, 5, 6: all there.
    """

    groups: tuple[LayerGroup, ...]
    num_key_value_heads: int
    head_dim: int
    max_lanes: int
    max_context: int
    max_chunk: int

    @classmethod
    def from_config(
        cls,
        config: MistralConfig,
        *,
        max_context: int,
        page_size: int | None,
        max_chunk: int = 512,
        max_lanes: int = 1,
    ) -> "CacheSpec":
        """Group the layers of `config` by window.

        page_size: slots of a page in all groups; None: a page is a whole lane (`Capabilities.page_size` of the
        executor). Raises InputError if a size is below 1.
        """
        sizes = {"max_context": max_context, "max_chunk": max_chunk, "max_lanes": max_lanes}
        for name, value in (sizes if page_size is None else sizes | {"page_size": page_size}).items():
            if value < 1:
                raise InputError(f"{name}={value} must be at least 1")
        max_chunk = min(max_chunk, max_context)
        layers_of: dict[Window, list[int]] = {}
        for layer, window in enumerate(config.layer_windows):
            layers_of.setdefault(window, []).append(layer)
        groups = tuple(
            LayerGroup(window, tuple(layers), page_size or _ring(window, max_context, max_chunk), page_size is None)
            for window, layers in layers_of.items()
        )
        return cls(groups, config.num_key_value_heads, config.head_dim, max_lanes, max_context, max_chunk)

    def group_of(self, layer: int) -> int:
        """The index in `groups` of the group that holds `layer`."""
        return next(index for index, group in enumerate(self.groups) if layer in group.layers)

    def slot_bytes(self, group: int, itemsize: int) -> int:
        """Bytes of a slot in all layers of the group `groups[group]`, `itemsize` bytes per number.

        Mistral 7B, float16: 32 layers * 2 * 8 heads * 128 * 2 = 128 KiB.
        """
        return len(self.groups[group].layers) * 2 * self.num_key_value_heads * self.head_dim * itemsize

    def page_bytes(self, group: int, itemsize: int) -> int:
        """Bytes of one page. Mistral 7B, pages of 64 slots, float16: 64 * 128 KiB = 8 MiB."""
        return self.groups[group].page_size * self.slot_bytes(group, itemsize)

    def lane_pages(self, group: int, context: int | None = None) -> int:
        """The most pages that one lane holds in the group `groups[group]`, up to `context` tokens (None: max_context).

        A windowed lane holds the window of its next query, the last chunk, and, so that this chunk can be undone, the
        pages that it let go of, at most as many as the chunk before it filled: `window - 1 + 2 * max_chunk`
        positions. A page that is copied because another lane shares it counts once more, until the lane's next plan.

        Example: window 3, max_chunk 2, pages of 2 slots: 6 positions lie in at most 4 pages, however long the text.
        """
        own = self.groups[group]
        if own.ring:
            return 1
        tokens = self.max_context if context is None else context
        pages = -(-tokens // own.page_size)
        if own.window is None:
            return pages
        positions = own.window - 1 + 2 * self.max_chunk
        return min(pages, 1 + -(-(positions - 1) // own.page_size))

    def lane_bytes(self, itemsize: int, context: int | None = None) -> int:
        """The most bytes that one lane holds, up to `context` tokens (None: max_context), `itemsize` per number.

        A ring counts as many slots as it has used. Mistral 7B, a ring of 4096 slots, float16:
        32 layers * 4096 * 2 * 8 heads * 128 * 2 = 512 MiB, however long the text.
        """
        tokens = self.max_context if context is None else context
        total = 0
        for index, group in enumerate(self.groups):
            slots = min(group.page_size, tokens) if group.ring else self.lane_pages(index, context) * group.page_size
            total += slots * self.slot_bytes(index, itemsize)
        return total


def _ring(window: Window, max_context: int, max_chunk: int) -> int:
    """Slots of a page that is a whole lane."""
    return max_context if window is None else min(max_context, window + max_chunk - 1)

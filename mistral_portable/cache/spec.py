"""CacheSpec: the sizes of a model's lanes, on which manager and executor agree before the first step."""

from dataclasses import dataclass

from mistral_portable.config import MistralConfig, Window
from mistral_portable.errors import InputError

__all__ = ["CacheSpec", "LayerGroup"]


@dataclass(frozen=True)
class LayerGroup:
    """Layers that share one window, and therefore slots. `slots` is the length of a full lane (see CacheSpec)."""

    window: Window
    layers: tuple[int, ...]
    slots: int


@dataclass(frozen=True)
class CacheSpec:
    """Sizes of the cache. A lane holds one sequence; every layer of a group has the same slots.

    A windowed group needs `window + max_chunk - 1` slots: a chunk of c tokens is written before it is read, and
    its first query still sees window - 1 older keys. A full group needs `max_context`. No group needs more than
    `max_context`. Position p lives in slot `p % slots`.

    Example: window 3, max_chunk 2, max_context 100 -> 4 slots. With positions 0..5 cached, slots hold 4 5 2 3.
    The chunk 6, 7 overwrites 2 and 3; query 6 sees 4, 5, 6: all there.

    Cached bytes per lane, all layers filled: sum over groups of
    `layers * slots * 2 * num_key_value_heads * head_dim * itemsize`. Mistral 7B, window 4096, float16, without
    the chunk's slack: 32 * 4096 * 2 * 8 * 128 * 2 = 512 MiB, however long the text.
    """

    groups: tuple[LayerGroup, ...]
    num_key_value_heads: int
    head_dim: int
    max_lanes: int
    max_context: int
    max_chunk: int

    @classmethod
    def from_config(
        cls, config: MistralConfig, *, max_context: int, max_chunk: int = 512, max_lanes: int = 1
    ) -> "CacheSpec":
        """Group the layers of `config` by window. Raises InputError if a size is below 1."""
        for name, value in (("max_context", max_context), ("max_chunk", max_chunk), ("max_lanes", max_lanes)):
            if value < 1:
                raise InputError(f"{name}={value} must be at least 1")
        max_chunk = min(max_chunk, max_context)
        layers_of: dict[Window, list[int]] = {}
        for layer, window in enumerate(config.layer_windows):
            layers_of.setdefault(window, []).append(layer)
        groups = tuple(
            LayerGroup(
                window,
                tuple(layers),
                max_context if window is None else min(max_context, window + max_chunk - 1),
            )
            for window, layers in layers_of.items()
        )
        return cls(groups, config.num_key_value_heads, config.head_dim, max_lanes, max_context, max_chunk)

    def group_of(self, layer: int) -> int:
        """The index in `groups` of the group that holds `layer`."""
        return next(index for index, group in enumerate(self.groups) if layer in group.layers)

    def lane_bytes(self, itemsize: int, context: int | None = None) -> int:
        """Bytes that one lane holds at `context` tokens (default: max_context), `itemsize` bytes per number."""
        tokens = self.max_context if context is None else context
        numbers = sum(len(group.layers) * min(group.slots, tokens) for group in self.groups)
        return numbers * 2 * self.num_key_value_heads * self.head_dim * itemsize

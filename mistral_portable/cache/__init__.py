"""The sliding-window cache in integers: lanes, positions, slots. It knows no framework and holds no tensors."""

from mistral_portable.cache.manager import CacheManager, Chunk
from mistral_portable.cache.plan import Reads, StepPlan
from mistral_portable.cache.spec import CacheSpec, LayerGroup
from mistral_portable.cache.window import first_visible, visible

__all__ = ["CacheManager", "CacheSpec", "Chunk", "LayerGroup", "Reads", "StepPlan", "first_visible", "visible"]

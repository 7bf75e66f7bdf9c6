"""The cache in integers: lanes, pages, positions, slots. It knows no framework and holds no tensors."""

from mistral_portable.cache.budget import CacheBudget
from mistral_portable.cache.manager import CacheManager, Chunk, Pages
from mistral_portable.cache.plan import Reads, StepPlan
from mistral_portable.cache.prefixes import common_length
from mistral_portable.cache.saved import SavedIntegers
from mistral_portable.cache.spec import CacheSpec, LayerGroup
from mistral_portable.cache.window import first_visible, visible

__all__ = [
    "CacheBudget",
    "CacheManager",
    "CacheSpec",
    "Chunk",
    "LayerGroup",
    "Pages",
    "Reads",
    "SavedIntegers",
    "StepPlan",
    "common_length",
    "first_visible",
    "visible",
]

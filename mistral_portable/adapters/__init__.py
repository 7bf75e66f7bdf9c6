"""LoRA adapters: `open_adapter` reads those of every format, `merge` makes one model of a checkpoint and adapters."""

from mistral_portable.adapters.adapter import Adapter, LowRank
from mistral_portable.adapters.merge import merge
from mistral_portable.adapters.merged import MergedTensor
from mistral_portable.adapters.open import open_adapter

__all__ = ["Adapter", "LowRank", "MergedTensor", "merge", "open_adapter"]

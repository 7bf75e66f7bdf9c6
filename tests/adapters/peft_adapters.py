"""Adapters that PEFT itself makes and saves, on tiny models of transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from hf_models import hf_model
from hypothesis import strategies as st
from numpy.typing import NDArray
from weights.files import small_config

from mistral_portable.config import MistralConfig

__all__ = ["LINEARS", "Made", "configs", "make", "merged_weights", "settings"]

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TABLES = ["embed_tokens", "lm_head"]


@dataclass(frozen=True)
class Made:
    """A model of transformers and one adapter of PEFT's, both saved in a folder."""

    base: Path
    adapter: Path
    model: Any


def configs() -> st.SearchStrategy[MistralConfig]:
    """Configs of small models, tied ones too."""
    return st.builds(
        small_config,
        vocab_size=st.integers(20, 50),
        hidden_size=st.just(32),
        num_attention_heads=st.just(4),
        num_key_value_heads=st.sampled_from([1, 2, 4]),
        head_dim=st.sampled_from([6, 8, 10]),
        tie_word_embeddings=st.booleans(),
    )


@st.composite
def settings(draw: st.DrawFn, tables: bool = True) -> dict[str, Any]:
    """Arguments of LoraConfig. tables: whether the embedding table and the head may be changed, or saved whole."""
    targets = draw(st.lists(st.sampled_from(LINEARS), min_size=1, unique=True))
    changed = draw(st.lists(st.sampled_from(TABLES), unique=True)) if tables else []
    saved = draw(st.lists(st.sampled_from(TABLES), unique=True)) if tables else []

    # In the order in which PEFT saves them: the first that matches counts, when it loads them again, too.
    def sorted_patterns(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        return st.dictionaries(pattern, values, max_size=3).map(lambda found: dict(sorted(found.items())))

    pattern = st.sampled_from(
        ["q_proj", r"layers\.0\..*", "model.layers.1.self_attn.v_proj", "(gate|up)_proj", ".*o_proj"]
    )
    return {
        "r": draw(st.integers(1, 5)),
        "lora_alpha": draw(st.sampled_from([1, 3, 16, 0.5])),
        "use_rslora": draw(st.booleans()),
        "fan_in_fan_out": draw(st.booleans()),
        "bias": draw(st.sampled_from(["none", "all", "lora_only"])),
        "rank_pattern": draw(sorted_patterns(st.integers(1, 6))),
        "alpha_pattern": draw(sorted_patterns(st.sampled_from([1, 7, 2.5]))),
        "target_modules": [*targets, *(name for name in changed if name not in saved)],
        "modules_to_save": saved or None,
        "layers_to_transform": draw(st.sampled_from([None, [0], 1])) if not changed else None,
        "init_lora_weights": draw(st.sampled_from([True, False, "gaussian"])),
    }


def make(folder: Path, config: MistralConfig, arguments: dict[str, Any], seed: int, safe: bool = True) -> Made:
    """Make a model and an adapter with random values, and save both; safe: as safetensors, else by torch.save."""
    base = hf_model(config, seed)
    base.save_pretrained(folder / "base")
    torch.manual_seed(seed)
    model: Any = peft.get_peft_model(base, peft.LoraConfig(**arguments))
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(str(folder / "adapter"), safe_serialization=safe)
    return Made(folder / "base", folder / "adapter", model.eval())


def merged_weights(made: Made) -> dict[str, NDArray[np.float32]]:
    """The weights after PEFT's `merge_and_unload`, which changes the model."""
    merged = made.model.merge_and_unload()
    return {name: tensor.detach().numpy() for name, tensor in merged.state_dict().items()}

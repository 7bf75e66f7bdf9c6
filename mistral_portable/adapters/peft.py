"""PEFT's adapters: `adapter_config.json` with `adapter_model.safetensors` or `adapter_model.bin`.

Source of the format: PEFT 0.21, `tuners/lora` and `utils/save_and_load.py`.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mistral_portable.adapters.adapter import Adapter
from mistral_portable.adapters.peft_patterns import Patterns
from mistral_portable.adapters.pieces import HEAD, TABLE, Piece, assemble
from mistral_portable.adapters.settings import number, positive, read_settings
from mistral_portable.config import MistralConfig
from mistral_portable.config.checks import show
from mistral_portable.errors import CheckpointError
from mistral_portable.weights import DenseTensor
from mistral_portable.weights.archive import is_zip
from mistral_portable.weights.names import from_hf
from mistral_portable.weights.safetensors_file import read_safetensors
from mistral_portable.weights.source import map_file
from mistral_portable.weights.torch_file import read_torch

__all__ = ["open_peft"]

_PREFIX = "base_model.model."
_LINEAR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight", re.DOTALL)
_LOOKUP = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(?:\.[^.]+)?", re.DOTALL)
_WHOLE = re.compile(r"(?P<module>.+?)(?:\.base_layer|\.modules_to_save(?:\.[^.]+)?)?\.weight", re.DOTALL)
_SIDES: Mapping[str, Any] = {"A": "down", "B": "up"}

_REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "replicated layers",
    "lora_bias": "biases of LoRA layers",
    "target_parameters": "changes of parameters that are no modules (experts)",
    "trainable_token_indices": "single trained tokens",
}
"""Settings that change the rule `weight + scale * up @ down`, and the names of what they ask for."""

_UNDERSTOOD = frozenset(
    [
        *["peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"],
        # Where the layers are, which the names of the tensors say, too.
        *["target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "bias"],
        # PEFT ignores fan_in_fan_out for the linear layers that Mistral's models have, with a warning.
        *["fan_in_fan_out", "ensure_weight_tying"],
        # How it was trained, or how it was made.
        *["lora_dropout", "inference_mode", "task_type", "base_model_name_or_path", "revision", "auto_mapping"],
        *["peft_version", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"],
        *["megatron_config", "megatron_core", "qalora_group_size", "velora_config"],
    ]
)

_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the model's own weights as they are; PiSSA and others change them."""

_REFUSED_KEYS = {
    r"lora_magnitude_vector": "DoRA is not supported",
    r"\.bias$": "biases are not supported, as Mistral's models have none",
    r"trainable_tokens": "single trained tokens are not supported; save the embedding table whole (modules_to_save)",
    r"(score|classifier|qa_outputs)\.": "heads other than lm_head are not supported",
    r"norm\.": "norms are not supported",
    r"vision|multi_modal_projector|audio": "the vision and sound parts of a model are not run",
}


def open_peft(path: Path, settings_file: Path, weights: Path, config: MistralConfig) -> Adapter:
    """Open an adapter of PEFT's. path: what the caller gave. config: the model's.

    Raises CheckpointError for settings, tensors and values that are not supported or do not fit.
    """
    settings = read_settings(settings_file)
    _require_plain(settings_file, settings)
    data = map_file(weights)
    torch = is_zip(data) or weights.suffix == ".bin"
    stored = read_torch(data, str(weights)) if torch else read_safetensors(data, str(weights))[1]
    modules: dict[str, str] = {}
    pieces: list[Piece] = []
    for tensor in stored:
        module, piece = _piece(weights, tensor)
        modules[piece.weight] = module
        pieces.append(piece)
    scale = _scales(settings_file, settings, modules)
    return assemble(path, pieces, len(data), config, scale)


def _require_plain(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError for other methods than LoRA, and for settings that are not known to be harmless."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{path}: peft_type={show(kind)} is not supported, LORA is; merge it into a model with PEFT"
        )
    for name, what in _REFUSED.items():
        if settings.get(name):
            raise CheckpointError(
                f"{path}: {what} ({name}={show(settings[name])}): not supported; merge the adapter with PEFT"
            )
    start = settings.get("init_lora_weights")
    if not any(start is plain or (isinstance(plain, str) and start == plain) for plain in _PLAIN_STARTS):
        raise CheckpointError(
            f"{path}: init_lora_weights={show(start)} changes the model's own weights; save the adapter with "
            "path_initial_model_for_weight_conversion"
        )
    for name in settings.keys() - _UNDERSTOOD - _REFUSED.keys():
        if settings[name]:
            raise CheckpointError(
                f"{path}: {name[:60]!r}={show(settings[name])} is not known; if it does not change what the adapter "
                "computes, remove it"
            )


def _piece(path: Path, tensor: DenseTensor) -> tuple[str, Piece]:
    """The name of the module, as PEFT's patterns see it, and the piece. Raises CheckpointError for refused kinds."""
    name = tensor.name.removeprefix(_PREFIX)
    for pattern, why in _REFUSED_KEYS.items():
        if re.search(pattern, name):
            raise CheckpointError(f"{path}: {tensor.name!r:.120}: {why}; merge the adapter with PEFT")
    if match := _LINEAR.fullmatch(name) or _LOOKUP.fullmatch(name):
        weight = from_hf(f"{match['module']}.weight")
        if (weight == TABLE) == ("lora_embedding_" in name):
            return match["module"], Piece(weight, _SIDES[match["side"]], tensor)
    elif match := _WHOLE.fullmatch(name):
        weight = from_hf(f"{match['module']}.weight")
        if weight in (TABLE, HEAD):
            return match["module"], Piece(weight, "whole", tensor)
    return name, Piece(name, "whole", tensor)  # `assemble` says what is wrong with it


def _scales(path: Path, settings: Mapping[str, Any], modules: Mapping[str, str]) -> Callable[[str, int], float]:
    """A function that gives the scale of a weight: alpha / rank, or alpha / sqrt(rank) with rslora."""
    ranks = Patterns(path, "rank_pattern", settings.get("rank_pattern"))
    alphas = Patterns(path, "alpha_pattern", settings.get("alpha_pattern"))

    def scale(weight: str, rank: int) -> float:
        module = modules[weight]
        wanted = positive(path, "r", ranks.value(module, settings.get("r", 8)))
        if wanted != rank:
            raise CheckpointError(
                f"{path}: r={wanted} for {module!r:.100}, whose tensors have the rank {rank}; save the adapter again"
            )
        alpha = number(path, "lora_alpha", alphas.value(module, settings.get("lora_alpha", 8)))
        return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)

    return scale

"""Writes GGUF files that llama.cpp loads, with the `gguf` package's writer, one tensor at a time."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mistral_portable.config import LinearScaling, MistralConfig, Window
from mistral_portable.conversion.gguf_vocabulary import add_vocabulary
from mistral_portable.conversion.model import Source
from mistral_portable.conversion.parts import Part, StackedTensor, block_part, float_part, forget
from mistral_portable.errors import ConfigError
from mistral_portable.weights import Tensor
from mistral_portable.weights.experts import stacked_name
from mistral_portable.weights.names import interleaved, to_gguf

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["add_config", "architecture", "plan_gguf", "write_gguf"]

_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# llama.cpp's names of file types that differ from the tensor type.
_MIXED = {
    "Q3_K": "Q3_K_M",
    "Q4_K": "Q4_K_M",
    "Q5_K": "Q5_K_M",
}
_OWN = ("general.architecture", "general.alignment", "general.file_type", "general.quantization_version")


def plan_gguf(source: Source) -> list[Part]:
    """The tensors of a GGUF file: ggml blocks unchanged, other matrices as floats, vectors as float32.

    llama.cpp requires float32 vectors, and the experts of a layer in one tensor with three axes.
    """
    tensors: dict[str, Tensor] = {}
    experts: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in source.tensors.items():
        if together := stacked_name(name):
            experts[together].append(tensor)
        else:
            tensors[to_gguf(name)] = interleaved(tensor, source.config)
    tensors |= {name: StackedTensor(name, tuple(each)) for name, each in experts.items()}
    return [_part(name, tensor, source) for name, tensor in tensors.items()]


def _part(name: str, tensor: Tensor, source: Source) -> Part:
    blocks = block_part(name, tensor) if source.dtype is None else None
    if blocks:
        return blocks
    if isinstance(tensor, StackedTensor) and len({each.dtype for each in tensor.tensors}) > 1:
        return float_part(name, tensor, source.dtype or "float32")
    return float_part(name, tensor, "float32" if len(tensor.shape) == 1 else source.float_type(tensor))


def write_gguf(
    path: Path, source: Source, parts: list[Part], progress: Callable[[Part], None], file_type: str | None = None
) -> None:
    """Write one file: metadata and vocabulary, then each tensor as it is read. `progress` is called after each.

    file_type: llama.cpp's name of the mixture of types, such as "MOSTLY_Q4_K_M"; by default the name for the type of
    most weights.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, architecture(source.config))
    with contextlib.closing(writer):
        _add_metadata(writer, source, parts, file_type)
        add_vocabulary(writer, source)
        for part in parts:
            kind = GGMLQuantizationType[_TYPES.get(part.dtype, part.dtype.upper())]
            # The writer ignores the NumPy dtype if a ggml type is given.
            writer.add_tensor_info(part.name, part.shape, np.dtype(np.float32), part.nbytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for part in parts:
            writer.write_tensor_data(part.read())
            forget(part.tensor)
            progress(part)


def _add_metadata(writer: "GGUFWriter", source: Source, parts: list[Part], file_type: str | None) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    config = source.config
    carried = source.checkpoint.metadata if source.checkpoint.format == "gguf" else {}
    named = {key: value for key, value in carried.items() if key.startswith("general.") and key not in _OWN}
    for key, value in ({"general.name": source.checkpoint.path.stem} | named).items():
        if isinstance(value, str):
            writer.add_string(key, value)
    sizes: Counter[str] = Counter()
    for part in parts:
        if len(part.shape) > 1:
            sizes[part.dtype] += prod(part.shape)
    common = sizes.most_common(1)[0][0]
    kind = _TYPES.get(common, common.upper())
    usual = "ALL_F32" if kind == "F32" else f"MOSTLY_{_MIXED.get(kind, kind)}"
    writer.add_file_type(LlamaFileType[file_type or usual])
    if any(part.dtype not in _TYPES for part in parts):
        writer.add_quantization_version(GGML_QUANT_VERSION)
    add_config(writer, config, source.one_window("gguf"))


def architecture(config: MistralConfig) -> str:
    """The GGUF architecture of a model: "mistral3" with YaRN or a query scale, which llama.cpp reads there only."""
    return "mistral3" if config.yarn or config.query_scale else "llama"


def add_config(writer: "GGUFWriter", config: MistralConfig, window: Window) -> None:
    """Add the hyper-parameters to the metadata. window: that of all layers that have one; None if none has."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    # 0 (no window) is written, too: without the key a reader would infer the window of 7B v0.1.
    writer.add_sliding_window(window or 0)
    windowed = [own is not None for own in config.layer_windows]
    if len(set(windowed)) > 1:
        writer.add_sliding_window_pattern(windowed)
    if config.num_local_experts:
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    _add_rope_scaling(writer, config)


def _add_rope_scaling(writer: "GGUFWriter", config: MistralConfig) -> None:
    """Add the scaling of RoPE and the query scale, like llama.cpp's conversion of Mistral's models.

    A logarithmic multiplier of 1 stands for an attention factor of 1. Raises ConfigError for what GGUF cannot express.
    """
    from gguf import RopeScalingType

    yarn, scale = config.yarn, config.query_scale
    if isinstance(config.rope_scaling, LinearScaling):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)
    elif config.rope_scaling and not yarn:
        raise ConfigError(
            f"RoPE of the type {config.rope_scaling.kind!r} is not written to GGUF files: convert it to hf"
        )
    lengths = {own.original_max_position_embeddings for own in (yarn, scale) if own}
    if len(lengths) > 1 or (yarn and not yarn.truncate):
        raise ConfigError("GGUF files have one original length, and truncated bounds of YaRN: keep the source")
    for length in lengths:
        writer.add_rope_scaling_orig_ctx_len(length)
    if yarn:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(yarn.factor)
        writer.add_rope_scaling_yarn_beta_fast(yarn.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(yarn.beta_slow)
        usual = yarn.attention_factor == yarn.usual_attention_factor
        writer.add_rope_scaling_yarn_log_mul(0.0 if usual else 1.0)
        if not usual and yarn.attention_factor not in (None, 1):
            writer.add_float32(f"{writer.arch}.rope.scaling.attn_factor", yarn.attention_factor)
    if scale:
        writer.add_attn_temperature_scale(scale.beta)

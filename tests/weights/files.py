"""Small checkpoints on disk, for the tests of every part that reads one.

tensors = random_tensors(config, rng)                        # float32, HF names
write_hf(folder, config, tensors, shards=2, dtype="bfloat16")
write_gguf(path, config, tensors, quantization="Q8_0")
write_raw(folder, config, tensors, form="pth", pieces=2)     # params.json, consolidated.00.pth and .01.pth

tensors = random_tensors(config, rng, quantization="Q4_K")   # matrices are packed blocks, uint8
write_gguf(path, config, tensors, quantization="Q4_K")       # rows must be whole blocks: 256 weights
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quants
from numpy.typing import NDArray

from mistral_portable.config import MistralConfig
from mistral_portable.graph import build
from mistral_portable.tokenizer.source import GGUFVocabulary
from mistral_portable.weights.names import half_split_order
from tools import random_blocks as blocks

__all__ = [
    "bfloat16",
    "gguf_name",
    "interleaved",
    "random_blocks",
    "random_tensors",
    "raw_name",
    "raw_params",
    "raw_tensors",
    "shapes",
    "small_config",
    "write_gguf",
    "write_hf",
    "write_raw",
    "write_safetensors",
    "write_torch",
]

_GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def small_config(**changes: Any) -> MistralConfig:
    """Two layers, hidden size 64, grouped-query attention; every row is a whole number of 32-weight blocks."""
    sizes = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    }
    return MistralConfig(**(sizes | changes))


def shapes(config: MistralConfig) -> dict[str, tuple[int, ...]]:
    """HF name -> shape of every parameter of the causal LM; tied embeddings have no `lm_head.weight`."""
    return {name: parameter.shape for name, parameter in build(config).parameters.items()}


def random_tensors(
    config: MistralConfig, rng: np.random.Generator, quantization: str | None = None
) -> dict[str, NDArray[Any]]:
    """A value for every parameter of the decoder, by HF name: norms near 1, matrices near 0 (std 0.05).

    float32; with `quantization` the matrices are `random_blocks` of that type.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for name, shape in shapes(config).items():
        if len(shape) == 1:
            tensors[name] = rng.normal(1, 0.1, shape).astype(np.float32)
        elif quantization is None:
            tensors[name] = rng.normal(0, 0.05, shape).astype(np.float32)
        else:
            tensors[name] = random_blocks(quantization, shape, rng)
    return tensors


def random_blocks(quantization: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A packed matrix, uint8 [rows, bytes per row], with weights near 0 (std about 0.05).

    Random bits with sane scales. Works for every ggml type that the package reads; `gguf` itself cannot pack K-quants.
    """
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[quantization]]
    rows, columns = shape
    assert columns % block == 0, f"{columns} columns are no whole number of {quantization} blocks of {block}"
    return blocks.random_blocks(quantization, rows * columns // block, 0.05, rng).reshape(rows, -1)


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 of each value."""
    return quants.quantize(values, GGMLQuantizationType.BF16).view(np.uint16).reshape(values.shape)


def write_hf(
    folder: Path,
    config: MistralConfig,
    tensors: Mapping[str, NDArray[np.float32]],
    shards: int = 1,
    dtype: str = "float32",
) -> None:
    """Write `config.json` and `model.safetensors`, or `shards` files and their index.

    `dtype` is "float32", "float16" or "bfloat16". `config.extra` may override `architectures`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    (folder / "config.json").write_text(json.dumps(kind | config.to_dict()))
    stored = {name: bfloat16(t) if dtype == "bfloat16" else t.astype(dtype) for name, t in tensors.items()}
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(stored.items())[shard::shards])
        write_safetensors(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write one safetensors file; uint16 is stored as BF16."""
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    data = b""
    for name, tensor in tensors.items():
        dtype = {"float32": "F32", "float16": "F16", "uint16": "BF16"}[tensor.dtype.name]
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": offsets}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_torch(
    folder: Path,
    config: MistralConfig,
    tensors: Mapping[str, NDArray[np.float32]],
    shards: int = 1,
    dtype: str = "float32",
) -> None:
    """Write `config.json` and `pytorch_model.bin`, or `shards` files and their index, as transformers 4 did."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", **config.to_dict()}))
    state = {name: torch.tensor(values).to(getattr(torch, dtype)) for name, values in tensors.items()}
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        part = dict(list(state.items())[shard::shards])
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


_RAW_NAMES = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}


def raw_tensors(config: MistralConfig, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The tensors under Mistral's own names, q and k rows in the interleaved RoPE layout."""
    return {raw_name(name): interleaved(name, tensor, config) for name, tensor in tensors.items()}


def raw_params(config: MistralConfig) -> dict[str, Any]:
    """The content of `params.json`; like in Mistral's files, without a window if there is none."""
    params: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "vocab_size": config.vocab_size,
    }
    if config.sliding_window is not None:
        window = config.sliding_window
        params["sliding_window"] = list(window) if isinstance(window, tuple) else window
    return params


def write_raw(
    folder: Path,
    config: MistralConfig,
    tensors: Mapping[str, NDArray[np.float32]],
    form: str = "safetensors",
    dtype: str = "float32",
    pieces: int = 1,
) -> None:
    """Write `params.json` and `consolidated.safetensors`, or `consolidated.NN.pth` with a piece of each tensor.

    Pieces are those of a model-parallel checkpoint: linear layers are divided along their outputs, wo and w2 along
    their inputs, the embedding table along its columns; every file has all norms.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(raw_params(config)))
    raw = raw_tensors(config, tensors)
    if form == "safetensors":
        stored = {name: bfloat16(t) if dtype == "bfloat16" else t.astype(dtype) for name, t in raw.items()}
        write_safetensors(folder / "consolidated.safetensors", stored)
        return
    import torch

    for piece in range(pieces):
        state = {}
        for name, tensor in raw.items():
            part = tensor
            if tensor.ndim == 2:
                columns = name.split(".")[-2] in ("wo", "w2", "tok_embeddings")
                part = np.split(tensor, pieces, axis=int(columns))[piece]
            state[name] = torch.tensor(part).to(getattr(torch, dtype))
        torch.save(state, folder / f"consolidated.{piece:02}.pth")


def raw_name(name: str) -> str:
    """The inverse of `names.from_raw`, written independently so that a mistake in one of them is found."""
    if name.startswith("model.layers."):
        _, _, index, module = name.removesuffix(".weight").split(".", 3)
        return f"layers.{index}.{_RAW_NAMES[module]}.weight"
    top = {"model.embed_tokens.weight": "tok_embeddings.weight", "lm_head.weight": "output.weight"}
    return top.get(name, name.removeprefix("model."))


def interleaved(name: str, tensor: NDArray[Any], config: MistralConfig) -> NDArray[Any]:
    """The tensor with q and k rows as raw and GGUF files have them."""
    for projection, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if name.endswith(f"{projection}.weight"):
            return tensor[np.argsort(half_split_order(heads, config.head_dim))]
    return tensor


def write_gguf(
    path: Path,
    config: MistralConfig,
    tensors: Mapping[str, NDArray[Any]],
    quantization: str = "F32",
    vocabulary: GGUFVocabulary | None = None,
    architecture: str = "llama",
    metadata: Mapping[str, Any] | None = None,
    split_max_tensors: int = 0,
) -> None:
    """Write one GGUF file like llama.cpp's conversion, with q and k rows in the interleaved RoPE layout.

    Args:
        path: The file.
        config: Its window is written only if it is an int, like in llama.cpp; tied embeddings leave out
            `output.weight`.
        tensors: By HF name. float32 matrices are packed as `quantization`; uint8 ones are its blocks already.
            Vectors (norms) are always stored as F32.
        quantization: "F32", "F16", "BF16" or a block type.
        vocabulary: Written to `tokenizer.*`.
        architecture: `general.architecture` and the prefix of its keys.
        metadata: More keys; they replace those written by default, and None removes one.
        split_max_tensors: If above 0, the file is split so.
    """
    keys: dict[str, Any] = {
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.key_length": config.head_dim,
        f"{architecture}.attention.value_length": config.head_dim,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": config.rope_theta,
        f"{architecture}.rope.dimension_count": config.head_dim,
        f"{architecture}.vocab_size": config.vocab_size,
    }
    if isinstance(config.sliding_window, int):
        keys[f"{architecture}.attention.sliding_window"] = config.sliding_window
    if vocabulary is not None:
        keys |= _vocabulary(vocabulary)
    writer = GGUFWriter(path, architecture, split_max_tensors=split_max_tensors)
    for key, value in (keys | dict(metadata or {})).items():
        if value is not None:
            _add(writer, key, value)
    for name, tensor in tensors.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor = interleaved(name, tensor, config)
        kind = GGMLQuantizationType["F32" if tensor.ndim == 1 else quantization]
        packed = tensor if tensor.dtype == np.uint8 else quants.quantize(tensor, kind)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(packed), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """The inverse of `names.from_gguf`, written independently so that a mistake in one of them is found."""
    if name.startswith("model.layers."):
        _, _, index, module = name.removesuffix(".weight").split(".", 3)
        return f"blk.{index}.{_GGUF_NAMES[module]}.weight"
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    return top.get(name, name)


def _vocabulary(vocabulary: GGUFVocabulary) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": vocabulary.pre,
        "tokenizer.ggml.tokens": list(vocabulary.tokens),
        "tokenizer.ggml.scores": list(vocabulary.scores) or None,
        "tokenizer.ggml.token_type": list(vocabulary.types),
        "tokenizer.ggml.merges": list(vocabulary.merges) or None,
        "tokenizer.ggml.bos_token_id": vocabulary.bos_token_id,
        "tokenizer.ggml.eos_token_id": vocabulary.eos_token_id,
        "tokenizer.ggml.unknown_token_id": vocabulary.unknown_token_id,
        "tokenizer.ggml.add_bos_token": vocabulary.add_bos,
        "tokenizer.ggml.add_space_prefix": vocabulary.add_space_prefix,
        "tokenizer.chat_template": vocabulary.chat_template,
    }


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)

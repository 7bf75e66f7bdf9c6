"""GGUF checkpoints: config and vocabulary from the metadata, tensors that stay quantized."""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.config import LinearScaling, MistralConfig, QueryScale, Yarn
from mistral_portable.config.hf import rope_from_hf
from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.tokenizer.source import GGUFVocabulary
from mistral_portable.weights.adapter_files import explain_gguf
from mistral_portable.weights.blocks import QUANTIZED, QuantTensor
from mistral_portable.weights.experts import expert_names
from mistral_portable.weights.ggml_types import AnyType
from mistral_portable.weights.gguf_file import Array, GGUFFile, Scalar, StoredTensor, read_gguf
from mistral_portable.weights.names import from_gguf, half_split
from mistral_portable.weights.source import DENSE, Checkpoint, DenseTensor, Tensor, listing
from mistral_portable.weights.windows import inferred_windows

__all__ = ["open_gguf", "part_names"]

# Both store q and k rows for interleaved RoPE: llama.cpp runs them with LLAMA_ROPE_TYPE_NORM; its conversion
# un-permutes HF checkpoints (`undo_permute`) and keeps the rows of Mistral's raw ones, which are interleaved.
_ARCHITECTURES = ("llama", "mistral3")

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.ASCII | re.DOTALL)

_REQUIRED = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
}
# Keys that may change the arithmetic, with the values that do not change it; other values are refused.
_NEUTRAL: dict[str, tuple[Scalar, ...]] = {
    "attention.sliding_window_pattern": (0,),
    "expert_gating_func": (1, 0),  # softmax
    "expert_shared_count": (0,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0, 1),
    "rope.scale_linear": (0, 1),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (1,),
}
_PATTERN = "attention.sliding_window_pattern"
_UNUSED = 5  # gguf.TokenType


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file of the architecture `llama` or `mistral3`, whole or split; q and k rows become half-split.

    path: the file, or any part of a split one (`...-00001-of-00003.gguf`) whose parts are all in its folder.

    Raises CheckpointError for corrupt, truncated and missing files and for tensor types that cannot be
    unpacked; ConfigError for hyper-parameters that are impossible or not supported (linear RoPE scaling).
    """
    path, parts = _parts(path)
    file = parts[0]
    if file.scalars.get("general.type") == "adapter":
        raise CheckpointError(explain_gguf(path, file.scalars))
    architecture = file.scalars.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise CheckpointError(
            f"{path}: the GGUF architecture {reprlib.repr(architecture)} is not supported, "
            f"{' and '.join(_ARCHITECTURES)} are"
        )
    stored = [tensor for part in parts for tensor in part.tensors]
    try:
        config, notices = _config(str(architecture), file, {tensor.name: tensor.shape for tensor in stored})
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"{path}: {error}") from error
    tensors: dict[str, Tensor] = {}
    for each in stored:
        for tensor in _tensors(path, each, config.num_local_experts):
            if tensor.name in tensors:
                raise CheckpointError(f"{path}: {tensor.name!r} is stored twice")
            tensors[tensor.name] = half_split(tensor, config)
    if "rope_freqs.weight" in tensors:
        raise ConfigError(f"{path}: rope_freqs.weight: scaled RoPE frequencies are not supported")
    ends = tuple(id for name in ("eot", "eom") if (id := _id(path, file.scalars, f"{name}_token_id")) is not None)
    vocabulary, of_tokenizer = _vocabulary(path, file, ends)
    return Checkpoint(path, "gguf", config, tensors, vocabulary, notices + of_tokenizer, file.scalars, ends)


def part_names(name: str) -> list[str]:
    """The names of all parts of a split file, or the name itself.

    >>> part_names("m-00002-of-00002.gguf")
    ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
    """
    match = _PART.fullmatch(name)
    if match is None:
        return [name]
    stem, _, count = match.groups()
    return [f"{stem}-{part:05}-of-{count}.gguf" for part in range(1, int(count) + 1)]


def _parts(path: Path) -> tuple[Path, list[GGUFFile]]:
    """The path of the first part, and all parts in order. Raises CheckpointError if `split.*` metadata disagree."""
    names = part_names(path.name)
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing or not names:
        raise CheckpointError(f"{path}: parts of the split file are missing: {listing(missing or [path.name])}")
    files = [read_gguf(path.parent / name) for name in names]
    for index, file in enumerate(files):
        place, count = file.scalars.get("split.no", 0), file.scalars.get("split.count", 1) or 1
        if (place, count) != (index, len(files)):
            raise CheckpointError(
                f"{path.parent / names[index]}: its metadata have part {reprlib.repr(place)} (from 0) of "
                f"{reprlib.repr(count)}, its name part {index} of {len(files)}; restore the names, as "
                "-00001-of-00003.gguf"
            )
    total = sum(len(file.tensors) for file in files)
    if len(files) > 1 and files[0].scalars.get("split.tensors.count", total) != total:
        raise CheckpointError(f"{path}: its parts hold {total} tensors, which is not its split.tensors.count")
    return path.parent / names[0], files


def _config(
    architecture: str, file: GGUFFile, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[MistralConfig, tuple[str, ...]]:
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in file.scalars.items()
        if key.startswith(f"{architecture}.")
    }
    for key in file.arrays:
        if key.startswith(f"{architecture}.") and key != f"{architecture}.{_PATTERN}":
            raise ConfigError(f"{key} is an array: values per layer are not supported")
    for key, neutral in _NEUTRAL.items():
        if own.get(key, neutral[0]) not in neutral:
            raise ConfigError(f"{architecture}.{key}={reprlib.repr(own[key])} is not supported")
    if architecture == "llama" and own.get("attention.temperature_scale"):  # llama.cpp has it for mistral3 only
        raise ConfigError("llama.attention.temperature_scale is not supported")
    missing = [f"{architecture}.{key}" for key in _REQUIRED if key not in own]
    if missing:
        raise CheckpointError(f"the metadata lacks {', '.join(missing)}")

    values: dict[str, Any] = {name: own[key] for key, name in (_REQUIRED | _OPTIONAL).items() if key in own}
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    for name in ("bos_token_id", "eos_token_id"):
        if f"tokenizer.ggml.{name}" in file.scalars:
            values[name] = file.scalars[f"tokenizer.ggml.{name}"]
    if "token_embd.weight" in shapes:
        values["vocab_size"] = shapes["token_embd.weight"][0]
    window = own.get("attention.sliding_window", 0)
    config = MistralConfig(
        **values,
        **_rope_scaling(own),
        tie_word_embeddings="output.weight" not in shapes,
        sliding_window=_windows(window, file.arrays.get(f"{architecture}.{_PATTERN}"), own["block_count"]),
    )
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, config.head_dim) != config.head_dim:
            raise ConfigError(f"{architecture}.{key}={reprlib.repr(own[key])} must be the head_dim {config.head_dim}")
    return (config, ()) if "attention.sliding_window" in own else inferred_windows(config, stated=False)


def _windows(window: Any, pattern: Array | None, layers: object) -> Any:
    """The window of all layers, or a tuple with that of each if the pattern tells which layers have it."""
    window = None if window == 0 else window  # MistralConfig checks it
    if pattern is None:
        return window
    if isinstance(pattern, tuple) or len(pattern) != layers:
        raise ConfigError(f"{_PATTERN} must be an array of {reprlib.repr(layers)} booleans, one for each layer")
    windows = tuple(window if windowed else None for windowed in pattern.tolist())
    return windows[0] if len(set(windows)) == 1 else windows


def _rope_scaling(own: Mapping[str, Scalar]) -> dict[str, Any]:
    """The fields rope_scaling and query_scale, from the keys of llama.cpp's architecture `mistral3` (llama-model.cpp).

    llama.cpp's attention factor is `attn_factor`, usually 1, times a factor by `yarn_log_multiplier`: YaRN's default
    for the multiplier 0, and 1 for the multiplier 1.
    """
    found: dict[str, Any] = {}
    kind: Any = own.get("rope.scaling.type", "none")
    original: Any = own.get("rope.scaling.original_context_length", own.get("context_length"))
    factor: Any = own.get("rope.scaling.factor", 1)
    attention: Any = own.get("rope.scaling.attn_factor", 1)
    if type(attention) not in (int, float):
        raise ConfigError(f"rope.scaling.attn_factor={attention!r:.40} must be a number")
    if kind == "yarn":
        scales: dict[str, Any] = {"mscale": 1, "mscale_all_dim": own.get("rope.scaling.yarn_log_multiplier", 0)}
        more = {
            "beta_fast": own.get("rope.scaling.yarn_beta_fast"),
            "beta_slow": own.get("rope.scaling.yarn_beta_slow"),
        }
        rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **scales, **more}
        yarn: Yarn = rope_from_hf({"rope_parameters": rope})["rope_scaling"]
        found["rope_scaling"] = (
            yarn if attention == 1 else replace(yarn, attention_factor=yarn.attention_factor * attention)
        )
    elif kind == "linear" and attention == 1:
        found["rope_scaling"] = LinearScaling(factor)
    elif kind != "none" or factor not in (0, 1) or attention != 1:
        raise ConfigError(
            f"rope.scaling.type={reprlib.repr(kind)}, rope.scaling.factor={reprlib.repr(factor)}: "
            "yarn and linear are supported"
        )
    if beta := own.get("attention.temperature_scale"):
        found["query_scale"] = QueryScale(beta, original)  # type: ignore[arg-type]  # it checks
        if own.get("attention.temperature_length", original) != original:
            raise ConfigError("attention.temperature_length other than the original context length is not supported")
    return found


def _tensors(path: Path, stored: StoredTensor, experts: int) -> list[Tensor]:
    """The tensor as a list of one, or the matrices of all experts that it holds."""
    names = expert_names(stored.name, experts)
    if names is None:
        return [_tensor(path, from_gguf(stored.name), stored.name, stored.type, stored.shape, stored.data)]
    if len(stored.shape) != 3 or stored.shape[0] != experts:
        raise CheckpointError(f"{path}: {stored.name!r} {stored.shape} does not hold {experts} experts")
    each = stored.data.reshape(experts, -1)
    return [
        _tensor(path, name, stored.name, stored.type, stored.shape[1:], data)
        for name, data in zip(names, each, strict=True)
    ]


def _tensor(
    path: Path, name: str, stored: str, type: AnyType, shape: tuple[int, ...], data: NDArray[np.uint8]
) -> Tensor:
    kind = type.name
    if kind in DENSE:
        dtype, numpy_type = DENSE[kind]
        return DenseTensor(name, dtype, data.view(numpy_type).reshape(shape))
    if kind not in QUANTIZED:
        supported = ", ".join([*DENSE, *sorted(QUANTIZED)])
        raise CheckpointError(f"{path}: {stored!r} has the type {kind}, which is not supported ({supported} are)")
    return QuantTensor(name, shape, type, data.reshape(int(np.prod(shape[:-1])), -1))


def _vocabulary(path: Path, file: GGUFFile, ends: tuple[int, ...]) -> tuple[GGUFVocabulary | None, tuple[str, ...]]:
    """The tokenizer in the metadata, or None with a notice of the reason."""
    model = file.scalars.get("tokenizer.ggml.model")
    if model not in ("llama", "gpt2"):
        return None, (
            f"{path.name} has no supported tokenizer ({reprlib.repr(model)}): give token ids instead of text.",
        )
    tokens, renamed = _different(path, _strings(path, file.arrays, "tokens"))
    scores = _numbers(path, file.arrays, "scores", len(tokens))
    types = [int(kind) for kind in _numbers(path, file.arrays, "token_type", len(tokens))] or [1] * len(tokens)
    for id in renamed:
        types[id] = _UNUSED
    ids = {name: _id(path, file.scalars, name) for name in ("bos_token_id", "eos_token_id", "unknown_token_id")}
    pre = str(file.scalars.get("tokenizer.ggml.pre", ""))
    template = file.scalars.get("tokenizer.chat_template")
    spm = model == "llama"
    return GGUFVocabulary(
        model=str(model),
        tokens=tokens,
        scores=tuple(map(float, scores)),
        types=tuple(types),
        merges=() if spm else _strings(path, file.arrays, "merges"),
        pre=pre,
        **ids,
        # Defaults of llama.cpp (llama-vocab.cpp).
        add_bos=bool(file.scalars.get("tokenizer.ggml.add_bos_token", spm or pre == "tekken")),
        add_space_prefix=bool(file.scalars.get("tokenizer.ggml.add_space_prefix", spm)),
        chat_template=None if template is None else str(template),
        ends=ends,
    ), tuple(renamed.values())


def _different(path: Path, tokens: tuple[bytes, ...]) -> tuple[tuple[bytes, ...], dict[int, str]]:
    """The tokens, where those that are empty, or there already, have names of their own, and a notice for each.

    No text is encoded as such a token; the model may still give it.
    """
    places: dict[bytes, int] = {}
    found, notices = list(tokens), dict[int, str]()
    for id, token in enumerate(tokens):
        if not token or token in places:
            found[id] = b"[%s_%d]" % (b"SAME" if token else b"EMPTY", id)
            why = f"the same text as token {places[token]}" if token else "no text"
            notices[id] = f"{path.name}: token {id} has {why}; no text is encoded as it."
        else:
            places[token] = id
    return tuple(found), notices


def _strings(path: Path, arrays: Mapping[str, Array], name: str) -> tuple[bytes, ...]:
    value = arrays.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, tuple):
        raise CheckpointError(f"{path}: tokenizer.ggml.{name} must be an array of strings")
    return value


def _numbers(path: Path, arrays: Mapping[str, Array], name: str, count: int) -> list[float]:
    """One number per token, or an empty list if the metadata has no such array."""
    value = arrays.get(f"tokenizer.ggml.{name}", ())
    if isinstance(value, tuple):
        if value:
            raise CheckpointError(f"{path}: tokenizer.ggml.{name} must be an array of numbers")
        return []
    if len(value) != count:
        raise CheckpointError(f"{path}: tokenizer.ggml.{name} has {len(value)} entries for {count} tokens")
    numbers: list[float] = value.tolist()
    return numbers


def _id(path: Path, scalars: Mapping[str, Scalar], name: str) -> int | None:
    value = scalars.get(f"tokenizer.ggml.{name}")
    if value is not None and not isinstance(value, int):
        raise CheckpointError(f"{path}: tokenizer.ggml.{name}={reprlib.repr(value)} must be an integer")
    return value

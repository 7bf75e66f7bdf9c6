"""Writes Hugging Face folders, for transformers and for mlx-lm, with the files beside the weights."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mistral_portable.config import MistralConfig
from mistral_portable.config.hf import rope_to_hf
from mistral_portable.conversion.model import Source
from mistral_portable.conversion.parts import Part, float_part
from mistral_portable.conversion.safetensors import write_sharded
from mistral_portable.errors import ConfigError
from mistral_portable.tokenizer import GGUFVocabulary, TokenizerFile, TokenizerFolder, load_tokenizer
from mistral_portable.tokenizer.folder import SETTINGS_FILES
from mistral_portable.tokenizer.gguf import to_file
from mistral_portable.tokenizer.library import LibraryTokenizer
from mistral_portable.tokenizer.open_common import read_file
from mistral_portable.tokenizer.to_folder import write_library
from mistral_portable.weights import AffineTensor

__all__ = ["hf_class", "hf_config", "plan_hf", "plan_mlx", "tokenizer_file", "write_hf", "write_mlx"]

_NO_CLASS = "no class of the target library has both {} and its RoPE scaling or windows; convert it to raw"


def plan_hf(source: Source) -> list[Part]:
    """The tensors of an HF folder: all parameters as floats; packed ones are unpacked."""
    return [float_part(name, tensor, source.float_type(tensor)) for name, tensor in source.tensors.items()]


def plan_mlx(source: Source) -> list[Part]:
    """The tensors of an MLX folder: MLX's own packed matrices unchanged, everything else as floats."""
    parts: list[Part] = []
    for name, tensor in source.tensors.items():
        if isinstance(tensor, AffineTensor) and source.dtype is None:
            module = name.removesuffix(".weight")
            codes, scales, biases = tensor.codes, tensor.scales, tensor.biases
            parts.append(Part(name, "uint32", tensor.packed.shape, tensor.packed.nbytes, codes, tensor))
            parts.append(float_part(f"{module}.scales", scales, scales.dtype))
            parts.append(float_part(f"{module}.biases", biases, biases.dtype))
        else:
            parts.append(float_part(name, tensor, source.float_type(tensor)))
    return parts


def write_hf(folder: Path, source: Source, parts: list[Part], progress: Callable[[Part], None]) -> None:
    """Write the tokenizer, the weights and, last, the `config.json` without which nothing loads."""
    config = hf_config(source, "hf")
    _write_beside(folder, source)
    write_sharded(folder, parts, {"format": "pt"}, progress)
    _write_json(folder / "config.json", config)


def write_mlx(folder: Path, source: Source, parts: list[Part], progress: Callable[[Part], None]) -> None:
    """Write a folder like `write_hf`, with mlx-lm's settings of packed weights in `config.json`.

    mlx-lm 0.32 cannot give all layers a window: its class for Mistral looks for a full layer among `layer_types`.
    """
    config = hf_config(source, "mlx")
    if any(part.dtype == "uint32" for part in parts):
        config["quantization"] = config["quantization_config"] = _quantization(source)
    _write_beside(folder, source)
    write_sharded(folder, parts, {"format": "mlx"}, progress)
    _write_json(folder / "config.json", config)


def tokenizer_file(source: Source) -> tuple[str, bytes] | None:
    """The name, which includes the version, and the content of Mistral's tokenizer file; None if there is none."""
    tokenizer = source.checkpoint.tokenizer
    if tokenizer is None or isinstance(tokenizer, TokenizerFolder):
        return None
    return read_file(tokenizer) if isinstance(tokenizer, TokenizerFile) else to_file(tokenizer)


def hf_config(source: Source, format: str) -> dict[str, Any]:
    """The `config.json` of the format "hf" or "mlx". Raises ConfigError if the library has no class for the model."""
    dtype = source.common_type
    kind, architecture = _class(source, format)
    config = {
        **source.config.to_dict(),
        "architectures": [architecture],
        "model_type": kind,
        "sliding_window": source.one_window(format),
        "dtype": dtype,
        "torch_dtype": dtype,  # its name before transformers 4.56
    }
    ends = dict.fromkeys([*source.config.eos_token_ids, *source.checkpoint.ends])
    if source.checkpoint.format == "gguf" and len(ends) > 1:  # a folder has its generation_config.json
        config["eos_token_id"] = list(ends)
    if source.windowed:
        kinds = ("full_attention", "sliding_attention")
        config["layer_types"] = [kinds[windowed] for windowed in source.windowed]
    if kind == "ministral3":
        own = source.config
        config["rope_parameters"] = {**rope_to_hf(own.rope_theta, own.rope_scaling, own.query_scale)}
    return config


def _class(source: Source, format: str) -> tuple[str, str]:
    """`model_type` and class for a format. mlx-lm has those of transformers, and layer windows in more of them."""
    config, mixed = source.config, source.windowed is not None
    if format == "mlx":
        if config.rope_scaling and not config.yarn:
            raise ConfigError(
                f"{source.checkpoint.path}: RoPE of the type {config.rope_scaling.kind!r} is not written for mlx-lm; "
                "convert it to hf"
            )
        if config.yarn and not (
            config.yarn.truncate and config.yarn.attention_factor in (1, config.yarn.usual_attention_factor)
        ):
            raise ConfigError(f"{source.checkpoint.path}: mlx-lm has no {config.yarn}; convert it to hf or raw")
        if config.num_local_experts and (mixed or config.yarn):
            raise ConfigError(f"{source.checkpoint.path}: {_NO_CLASS.format('experts')}")
        mixed = False
    return hf_class(config, mixed, str(source.checkpoint.path))


def hf_class(config: MistralConfig, mixed: bool, source: str) -> tuple[str, str]:
    """transformers' `model_type` and class for a model. mixed: only some of its layers have a window.

    Raises ConfigError, which begins with `source`, if there is no class for it.
    """
    if config.num_local_experts:
        if mixed or config.query_scale:
            raise ConfigError(f"{source}: {_NO_CLASS.format('experts')}")
        return "mixtral", "MixtralForCausalLM"
    if config.yarn or config.query_scale:
        if mixed:
            raise ConfigError(f"{source}: {_NO_CLASS.format('windows in some layers')}")
        return "ministral3", "Ministral3ForCausalLM"
    return ("ministral", "MinistralForCausalLM") if mixed else ("mistral", "MistralForCausalLM")


def _quantization(source: Source) -> dict[str, Any]:
    """mlx-lm's settings: bits and group size of most packed matrices, and, by module, those that differ."""
    how = {
        name.removesuffix(".weight"): (tensor.group_size, tensor.bits)
        for name, tensor in source.tensors.items()
        if isinstance(tensor, AffineTensor)
    }
    common = Counter(how.values()).most_common(1)[0][0]
    others = {name: {"group_size": size[0], "bits": size[1]} for name, size in how.items() if size != common}
    return {"group_size": common[0], "bits": common[1], **others}


def _write_beside(folder: Path, source: Source) -> None:
    """Write the tokenizer file and its settings under the names that transformers looks for."""
    settings = [] if source.folder is None else [(source.folder, "generation_config.json")]
    if source.tokenizer_folder:
        settings += [(source.tokenizer_folder, pattern) for pattern in SETTINGS_FILES]
    for own, pattern in settings:
        for path in own.glob(pattern):
            to = folder / path.relative_to(own)
            to.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, to)
    tokenizer = source.checkpoint.tokenizer
    if isinstance(tokenizer, TokenizerFile):
        (folder / tokenizer.path.name).write_bytes(tokenizer.read())
    if isinstance(tokenizer, GGUFVocabulary):
        found = load_tokenizer(tokenizer)
        if isinstance(found, LibraryTokenizer):
            write_library(folder, found)
            return
        if tokenizer.chat_template and "{" in tokenizer.chat_template:
            (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    file = tokenizer_file(source)
    if file is None or (folder / "tokenizer_config.json").exists():
        return
    if isinstance(tokenizer, TokenizerFile):
        (folder / tokenizer.path.name).unlink()
    name, content = file
    (folder / name).write_bytes(content)
    # transformers then uses mistral-common's tokenizer, which gives the same ids as this package.
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "MistralCommonBackend"})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

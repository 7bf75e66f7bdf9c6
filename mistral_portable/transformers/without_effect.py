"""Arguments of transformers that ask for nothing here: they are taken, and other values of them are refused with the
reason."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mistral_portable.errors import InputError
from mistral_portable.transformers.checks import shown

__all__ = ["CALLING", "GENERATING", "LOADING", "without_effect"]

_ANY = "any value"

LOADING: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "_fast_init": (_ANY, ""),
        "_from_auto": (_ANY, ""),
        "_from_pipeline": (_ANY, ""),
        "code_revision": (_ANY, ""),
        "legacy": (_ANY, ""),
        "low_cpu_mem_usage": (_ANY, ""),
        "mirror": (_ANY, ""),
        "offload_buffers": (_ANY, ""),
        "offload_folder": (_ANY, ""),
        "offload_state_dict": (_ANY, ""),
        "resume_download": (_ANY, ""),
        "trust_remote_code": (_ANY, ""),  # no code of a model is ever run
        "use_fast": (_ANY, ""),
        "use_safetensors": (_ANY, ""),  # every format is read
        "weights_only": (_ANY, ""),
        "adapter_kwargs": (None, "adapters are merged, or loaded by mistral_portable.load(adapters=...)"),
        "device_mesh": (None, "mistral_portable.load(tensor_parallel=...) splits a model"),
        "from_flax": (False, "msgpack files are not read"),
        "from_tf": (False, "h5 files are not read"),
        "gguf_file": (None, "pass the path of the file, or the name 'owner/name:file.gguf'"),
        "ignore_mismatched_sizes": (False, "weights of other shapes are refused, as nothing is trained here"),
        "key_mapping": (None, "weights have the names of their format"),
        "kernel_config": (None, "kernels are the backend's"),
        "max_memory": (None, "a model is on one device"),
        "output_loading_info": (False, "weights that are missing are an error"),
        "proxies": (None, "set HTTPS_PROXY"),
        "state_dict": (None, "make the model with tensors="),
        "tp_plan": (None, "mistral_portable.load(tensor_parallel=...) splits a model"),
        "tp_size": (None, "mistral_portable.load(tensor_parallel=...) splits a model"),
        "use_kernels": (False, "kernels are the backend's"),
        "variant": (None, "pass revision=, or the path of the file"),
    }
)
"""Arguments of from_pretrained: the value that asks for nothing, and why others are refused."""

CALLING: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "output_router_logits": (False, "the scores of experts are not returned"),
        "return_legacy_cache": (False, "caches are of the class Cache"),
        "token_type_ids": (None, "the model has one kind of tokens"),
    }
)
"""Arguments of a model's call."""

_MOVED = "transformers 5 has it as code on the hub, which is not run here"
_ASSISTANT = "drafts change no text here, and their lengths follow from what they save; pass assistant_model alone"

GENERATING: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        **CALLING,
        "assistant_confidence_threshold": (_ANY, ""),
        "assistant_lookbehind": (_ANY, ""),
        "assistant_tokenizer": (_ANY, ""),
        "cache_config": (_ANY, ""),
        "compile_config": (_ANY, ""),
        "decoder_start_token_id": (_ANY, ""),
        "disable_compile": (_ANY, ""),
        "logits_to_keep": (_ANY, ""),
        "max_cache_len": (_ANY, ""),
        "max_matching_ngram_size": (_ANY, ""),
        "num_assistant_tokens": (_ANY, ""),
        "num_assistant_tokens_schedule": (_ANY, ""),
        "prefill_chunk_size": (_ANY, ""),
        "target_lookbehind": (_ANY, ""),
        "trust_remote_code": (_ANY, ""),
        "use_model_defaults": (_ANY, ""),
        "assistant_early_exit": (None, _ASSISTANT),
        "assistant_ensemble_weight": (None, _ASSISTANT),
        "constraints": (None, _MOVED),
        "continuous_batching_config": (None, "rows always begin where others end"),
        "custom_generate": (None, "code of the hub is not run"),
        "diversity_penalty": (0, _MOVED),
        "dola_layers": (None, _MOVED),
        "force_words_ids": (None, _MOVED),
        "is_assistant": (False, _ASSISTANT),
        "low_memory": (False, "transformers 5 refuses it, too"),
        "num_beam_groups": (1, _MOVED),
        "penalty_alpha": (0, _MOVED),
        "speculation_type": (None, _ASSISTANT),
        "synced_gpus": (False, "mistral_portable.load(tensor_parallel=...) splits a model"),
        "token_healing": (False, "tokens of the prompt are not changed"),
        "top_h": (None, "choose by top_p, min_p or typical_p"),
        "use_mtp": (False, _ASSISTANT),
        "watermarking_config": (None, "texts are not marked here"),
    }
)
"""Arguments of generate, and fields of a GenerationConfig."""


def without_effect(given: Mapping[str, Any], known: Mapping[str, tuple[Any, str]], where: str) -> dict[str, Any]:
    """Return the arguments that are not among the known ones. Raises InputError for a value that asks for something.

    where: the function, for the message. What is None or empty asks for nothing.

    >>> without_effect({"low_cpu_mem_usage": True, "proxies": {}, "vocab_size": 9}, LOADING, "from_pretrained")
    {'vocab_size': 9}
    """
    for name in given.keys() & known.keys():
        value, (harmless, why) = given[name], known[name]
        if harmless == _ANY or value is None or (isinstance(value, list | tuple | dict) and not value):
            continue
        if harmless is None or not isinstance(value, bool | int | float) or value != harmless:
            raise InputError(f"{where}: {name}={shown(value)} is not supported: {why}")
    return {name: value for name, value in given.items() if name not in known}

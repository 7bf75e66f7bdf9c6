"""GenerationConfig: the arguments of `generate` as an object, and what they are where nobody says it."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mistral_portable.errors import CheckpointError, ConfigError, InputError
from mistral_portable.tokenizer.folder import read_object
from mistral_portable.transformers.configuration import MistralConfig
from mistral_portable.weights.open import HUB_NAME

__all__ = ["DEFAULTS", "FILE", "GenerationConfig", "merged"]

FILE = "generation_config.json"

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "max_length": None,
        "min_length": 0,
        "do_sample": False,
        "use_cache": True,
        "early_stopping": False,
        "num_beams": 1,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "typical_p": 1.0,
        "repetition_penalty": 1.0,
        "length_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "num_return_sequences": 1,
        "output_scores": False,
        "return_dict_in_generate": False,
        "remove_invalid_values": False,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
        "encoder_repetition_penalty": 1.0,
    }
)
"""Values of fields that neither the call nor the model states. Source: transformers' `_get_default_generation_params`;
but there `max_length` is 20, which stands for 20 new tokens (`generate`)."""

_FIELDS = (
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "early_stopping", "max_time", "stop_strings"),
    *("do_sample", "num_beams", "use_mtp", "use_cache", "cache_implementation", "cache_config", "max_cache_len"),
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("repetition_penalty", "encoder_repetition_penalty", "length_penalty", "no_repeat_ngram_size", "bad_words_ids"),
    *("renormalize_logits", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"),
    *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"),
    *("token_healing", "guidance_scale", "watermarking_config", "num_return_sequences", "output_attentions"),
    *("output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate", "pad_token_id"),
    *("bos_token_id", "eos_token_id", "encoder_no_repeat_ngram_size", "decoder_start_token_id", "is_assistant"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
    *("target_lookbehind", "assistant_ensemble_weight", "speculation_type", "compile_config", "disable_compile"),
    *("continuous_batching_config", "low_memory", "penalty_alpha", "dola_layers", "diversity_penalty"),
    *("num_beam_groups", "constraints", "force_words_ids", "prefill_chunk_size"),
    *("_from_model_config", "transformers_version"),
)
"""Names that transformers' class has, all None until they are set."""

_METADATA = ("_from_model_config", "transformers_version")
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


class GenerationConfig:
    """The arguments of `generate` as attributes, which may be set; those that are None are left open.

    Other names are kept, too. `generate` says what each means, and refuses values that it cannot follow.

    >>> config = GenerationConfig(max_new_tokens=9, top_k=None)
    >>> config.update(top_k=5, unknown=1), config.top_k
    ({'unknown': 1}, 5)
    >>> config.to_diff_dict()
    {'max_new_tokens': 9, 'top_k': 5}
    """

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(dict.fromkeys(_FIELDS) | values)

    def __getattr__(self, name: str) -> Any:
        """Raise AttributeError: there is no such field."""
        raise AttributeError(f"GenerationConfig has no {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self._plain() == other._plain()

    __hash__ = None  # type: ignore[assignment]  # it may change

    def __repr__(self) -> str:
        return f"GenerationConfig {json.dumps(self._plain(), indent=2, sort_keys=True, default=str)}"

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, those that are None among them."""
        return copy.deepcopy(self.__dict__)

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields that are set, by name."""
        return {name: value for name, value in self.to_dict().items() if value is not None}

    def to_json_string(self, use_diff: bool = True) -> str:
        """The fields as the text of a generation_config.json, sorted by name: those that are set, or all."""
        fields = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(fields, indent=2, sort_keys=True, default=str) + "\n"

    def update(self, defaults_only: bool = False, allow_custom_entries: bool = False, **values: Any) -> dict[str, Any]:
        """Set fields that there are, and return the other values.

        defaults_only: only fields that are None. allow_custom_entries: names that are new become fields.
        """
        fields = self.__dict__
        mine = {name: value for name, value in values.items() if name in fields or allow_custom_entries}
        used = {name: value for name, value in mine.items() if not defaults_only or fields.get(name) is None}
        fields.update(used)
        return {name: value for name, value in values.items() if name not in used}

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **values: Any) -> Any:
        """Make a config from fields by name; values: more of them, which count before those.

        return_unused_kwargs: return a pair whose second part is what was not used: nothing, as names are kept.
        """
        made = cls(**{**config_dict, **values})
        return (made, dict[str, Any]()) if return_unused_kwargs else made

    @classmethod
    def from_model_config(cls, model_config: MistralConfig | Mapping[str, Any]) -> "GenerationConfig":
        """Make the config of a model without a generation_config.json: the special tokens of its config.json."""
        fields = model_config if isinstance(model_config, Mapping) else model_config.to_dict()
        return cls(_from_model_config=True, **{name: fields.get(name) for name in _SPECIAL})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | Path,
        config_file_name: str | None = None,
        *,
        subfolder: str = "",
        return_unused_kwargs: bool = False,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **values: Any,
    ) -> Any:
        """Read the generation_config.json of a folder or of a hub repository, from which no weights are downloaded.

        config_file_name: another name of the file. return_unused_kwargs, values: see `from_dict`. Others: of the
        download. Raises CheckpointError if there is no such file, TokenizerError if it is not JSON.
        """
        from mistral_portable.weights.hub import download_files

        name, path = config_file_name or FILE, Path(pretrained_model_name)
        if not path.exists() and (match := HUB_NAME.fullmatch(str(pretrained_model_name))) and match[2] is None:
            path = download_files(
                match[1],
                [name],
                subfolder=subfolder,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        else:
            path = path / subfolder
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: no such file")
        return cls.from_dict(read_object(path / name), return_unused_kwargs, **values)

    def save_pretrained(self, save_directory: str | Path, config_file_name: str | None = None) -> None:
        """Write generation_config.json into a folder, which is made if needed. Raises ConfigError if that fails."""
        folder = Path(save_directory)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / (config_file_name or FILE)).write_text(self.to_json_string(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{folder}: {FILE} cannot be written: {error.strerror}") from error

    def _plain(self) -> dict[str, Any]:
        return {name: value for name, value in self.to_diff_dict().items() if name not in _METADATA}


def merged(call: Mapping[str, Any], given: GenerationConfig | None, model: GenerationConfig) -> GenerationConfig:
    """The fields of a call: its own arguments, also those that are None, which turn something off; then those of the
    `generation_config` that it was given, those of the model, and the defaults.

    Source: transformers' `_prepare_generation_config`. Raises InputError for another object than a GenerationConfig.
    """
    for name, config in (("generation_config", given), ("model.generation_config", model)):
        if config is not None and not hasattr(config, "to_dict"):
            raise InputError(f"{name} is a {type(config).__name__}: pass a GenerationConfig")
    fields: dict[str, Any] = {**DEFAULTS}
    for config in (model, given):
        if config is not None:  # transformers' own object is as good as ours
            fields |= {name: value for name, value in config.to_dict().items() if value is not None}
    return GenerationConfig(**{**fields, **call})

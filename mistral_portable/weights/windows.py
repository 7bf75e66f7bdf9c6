"""Attention windows that the files of some models do not state, inferred from the model's shape, with a notice."""

from mistral_portable.config import MistralConfig, Window

__all__ = ["inferred_windows"]

_MINISTRAL_8B: tuple[Window, ...] = (None, 32768, 32768, 32768)
_OVERRIDE = "Set another one with window= or --window."


def inferred_windows(config: MistralConfig, *, stated: bool) -> tuple[MistralConfig, tuple[str, ...]]:
    """The config with the windows of the original model, and notices for the user.

    stated: whether the file states a window, or that there is none. Hugging Face's files of Ministral 8B state one
    window for all layers; GGUF files of it and of 7B v0.1 do not state any.
    """
    if not stated and _is_first_7b(config):
        return config.with_window(4096), (
            "GGUF files of Mistral 7B v0.1 do not store its attention window; a window of 4096 was inferred "
            f"from the model's shape. {_OVERRIDE}",
        )
    if _is_ministral_8b(config) and config.sliding_window == (32768 if stated else None):
        return config.with_window(_MINISTRAL_8B), (
            "files of Ministral 8B do not say which of its layers have an attention window; one layer without and "
            f"three with a window of 32768, by turns, were inferred from the model's shape. {_OVERRIDE}",
        )
    return config, ()


def _is_first_7b(config: MistralConfig) -> bool:
    """Whether it has the shape of Mistral 7B v0.1 or of a derivative, which may add any number of tokens.

    v0.2 has theta 1e6 and no window.
    """
    return (
        config.rope_theta == 1e4
        and config.vocab_size >= 32000
        and config.num_key_value_heads == 8
        and config.intermediate_size == 14336
    )


def _is_ministral_8b(config: MistralConfig) -> bool:
    """Whether it has the shape of Ministral-8B-Instruct-2410, which no other model of this theta and vocabulary has."""
    return (
        config.rope_theta == 1e8
        and config.vocab_size == 131072
        and (config.num_hidden_layers, config.num_key_value_heads) == (36, 8)
        and (config.hidden_size, config.intermediate_size) == (4096, 12288)
    )

"""Hugging Face's documented names, on any backend: `from mistral_portable.transformers import MistralForCausalLM`."""

from mistral_portable.transformers.cache import Cache
from mistral_portable.transformers.configuration import MistralConfig
from mistral_portable.transformers.modeling import (
    MistralForCausalLM,
    MistralForQuestionAnswering,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralModel,
    MistralPreTrainedModel,
)

__all__ = [
    "Cache",
    "MistralConfig",
    "MistralForCausalLM",
    "MistralForQuestionAnswering",
    "MistralForSequenceClassification",
    "MistralForTokenClassification",
    "MistralModel",
    "MistralPreTrainedModel",
]

"""Hugging Face's documented names, on any backend: `from mistral_portable.transformers import MistralForCausalLM`."""

from mistral_portable.transformers.attention_visualizer import AttentionMaskVisualizer
from mistral_portable.transformers.auto_model import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
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
from mistral_portable.transformers.options import BitsAndBytesConfig

__all__ = [
    "AttentionMaskVisualizer",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "BitsAndBytesConfig",
    "Cache",
    "MistralConfig",
    "MistralForCausalLM",
    "MistralForQuestionAnswering",
    "MistralForSequenceClassification",
    "MistralForTokenClassification",
    "MistralModel",
    "MistralPreTrainedModel",
]

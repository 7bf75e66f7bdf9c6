"""AutoModel and AutoModelFor...: other names for the models, as there is one class for each head."""

from mistral_portable.transformers.modeling import (
    MistralForCausalLM,
    MistralForQuestionAnswering,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralModel,
)

__all__ = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
]

AutoModel = MistralModel
AutoModelForCausalLM = MistralForCausalLM
AutoModelForSequenceClassification = MistralForSequenceClassification
AutoModelForTokenClassification = MistralForTokenClassification
AutoModelForQuestionAnswering = MistralForQuestionAnswering

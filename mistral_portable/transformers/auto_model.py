"""AutoModelForCausalLM and its kin: there is one class for each head, so these are other names for them."""

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

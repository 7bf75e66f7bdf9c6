"""Classes and functions under the names of Hugging Face's documentation, on any backend: its examples run here with one
changed import.

from mistral_portable.transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("tiny"), AutoModelForCausalLM.from_pretrained("tiny")
ids = tokenizer("Once upon a time", return_tensors="np")
print(tokenizer.batch_decode(model.generate(**ids, max_new_tokens=40), skip_special_tokens=True)[0])
"""

from mistral_portable.transformers.attention_visualizer import AttentionMaskVisualizer
from mistral_portable.transformers.auto_config import AutoConfig
from mistral_portable.transformers.auto_model import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from mistral_portable.transformers.auto_tokenizer import AutoTokenizer
from mistral_portable.transformers.batch_encoding import BatchEncoding
from mistral_portable.transformers.cache import Cache
from mistral_portable.transformers.classification import (
    FeatureExtractionPipeline,
    TextClassificationPipeline,
    TokenClassificationPipeline,
)
from mistral_portable.transformers.common_backend import MistralCommonBackend
from mistral_portable.transformers.configuration import MistralConfig
from mistral_portable.transformers.fast_tokenizer import PreTrainedTokenizerFast
from mistral_portable.transformers.frameworks.flax import FlaxMistralForCausalLM, FlaxMistralModel
from mistral_portable.transformers.frameworks.tensorflow import (
    TFMistralForCausalLM,
    TFMistralForSequenceClassification,
    TFMistralModel,
)
from mistral_portable.transformers.generation_config import GenerationConfig
from mistral_portable.transformers.logits_processor import LogitsProcessor, LogitsProcessorList
from mistral_portable.transformers.modeling import (
    MistralForCausalLM,
    MistralForQuestionAnswering,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralModel,
)
from mistral_portable.transformers.new_caches import DynamicCache, StaticCache
from mistral_portable.transformers.options import BitsAndBytesConfig
from mistral_portable.transformers.padding import PaddingStrategy, TruncationStrategy
from mistral_portable.transformers.pipelines import pipeline
from mistral_portable.transformers.pretrained_model import MistralPreTrainedModel
from mistral_portable.transformers.seeds import set_seed
from mistral_portable.transformers.stopping import StoppingCriteria, StoppingCriteriaList
from mistral_portable.transformers.streamers import AsyncTextIteratorStreamer, TextIteratorStreamer, TextStreamer
from mistral_portable.transformers.text_generation import TextGenerationPipeline
from mistral_portable.transformers.tokenizer import MistralCommonTokenizer

__all__ = [
    "AsyncTextIteratorStreamer",
    "AttentionMaskVisualizer",
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "BatchEncoding",
    "BitsAndBytesConfig",
    "Cache",
    "DynamicCache",
    "FeatureExtractionPipeline",
    "FlaxMistralForCausalLM",
    "FlaxMistralModel",
    "GenerationConfig",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MistralCommonBackend",
    "MistralCommonTokenizer",
    "MistralConfig",
    "MistralForCausalLM",
    "MistralForQuestionAnswering",
    "MistralForSequenceClassification",
    "MistralForTokenClassification",
    "MistralModel",
    "MistralPreTrainedModel",
    "PaddingStrategy",
    "PreTrainedTokenizerFast",
    "StaticCache",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "TFMistralForCausalLM",
    "TFMistralForSequenceClassification",
    "TFMistralModel",
    "TextClassificationPipeline",
    "TextGenerationPipeline",
    "TextIteratorStreamer",
    "TextStreamer",
    "TokenClassificationPipeline",
    "TruncationStrategy",
    "pipeline",
    "set_seed",
]

LlamaTokenizer = LlamaTokenizerFast = AutoTokenizer  # the names in older code, for all kinds of folders

"""The names of Hugging Face's documentation: what follows its pages runs here with one changed import.

from mistral_portable.transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("tiny")
tokenizer(["Hi", "Hello there"], padding=True, return_tensors="np")
"""

from mistral_portable.transformers.auto import AutoTokenizer
from mistral_portable.transformers.batch_encoding import BatchEncoding
from mistral_portable.transformers.lengths import PaddingStrategy, TruncationStrategy
from mistral_portable.transformers.tokenizer import MistralCommonTokenizer

__all__ = [
    "AutoTokenizer",
    "BatchEncoding",
    "LlamaTokenizer",
    "MistralCommonTokenizer",
    "PaddingStrategy",
    "TruncationStrategy",
]

LlamaTokenizer = MistralCommonTokenizer  # the name on v4.34's page, for converted weights

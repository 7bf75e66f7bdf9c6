"""Text to token ids and back, by mistral-common for Mistral's models, and by Hugging Face's library for finetunes.

>>> tokenizer = load_tokenizer(TokenizerFile(Path("tokenizer.model.v3")))
>>> tokenizer.chat([{"role": "user", "content": "Hi"}])
[1, 3, 16127, 4]
>>> tokenizer.decode([1395, 29477])
'Yo'
"""

from mistral_portable.tokenizer.call_ids import is_call_id, make_call_id
from mistral_portable.tokenizer.load import load_tokenizer
from mistral_portable.tokenizer.messages import THINK_MARKERS
from mistral_portable.tokenizer.source import GGUFVocabulary, TokenizerFile, TokenizerFolder, TokenizerSource
from mistral_portable.tokenizer.stream import TextStream
from mistral_portable.tokenizer.tokenizer import Tokenizer

__all__ = [
    "THINK_MARKERS",
    "GGUFVocabulary",
    "TextStream",
    "Tokenizer",
    "TokenizerFile",
    "TokenizerFolder",
    "TokenizerSource",
    "is_call_id",
    "load_tokenizer",
    "make_call_id",
]

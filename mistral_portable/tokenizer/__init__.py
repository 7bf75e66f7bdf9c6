"""Text to token ids and back. mistral-common is the reference, for files and for GGUF's vocabulary alike.

>>> tokenizer = load_tokenizer(TokenizerFile(Path("tokenizer.model.v3")))
>>> tokenizer.chat([{"role": "user", "content": "Hi"}])
[1, 3, 16127, 4]
>>> tokenizer.decode([1395, 29477])
'Yo'
"""

from mistral_portable.tokenizer.load import load_tokenizer
from mistral_portable.tokenizer.source import GGUFVocabulary, TokenizerFile
from mistral_portable.tokenizer.stream import TextStream
from mistral_portable.tokenizer.tokenizer import Tokenizer

__all__ = ["GGUFVocabulary", "TextStream", "Tokenizer", "TokenizerFile", "load_tokenizer"]

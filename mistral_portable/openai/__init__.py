"""OpenAI's formats: requests for chats and texts, their answers, and batches of them in files."""

from mistral_portable.openai.batch import BatchResult, run_batch
from mistral_portable.openai.messages import assistant_message, delta_fields, finish_reason
from mistral_portable.openai.requests import ChatRequest, TextRequest, parse_request

__all__ = [
    "BatchResult",
    "ChatRequest",
    "TextRequest",
    "assistant_message",
    "delta_fields",
    "finish_reason",
    "parse_request",
    "run_batch",
]

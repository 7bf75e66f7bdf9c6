"""Descriptions of a model, as OpenAI's and Mistral's /v1/models give them; each ignores the other's fields.

Sources: https://platform.openai.com/docs/api-reference/models, https://docs.mistral.ai/api/endpoint/models.
"""

from mistral_portable.api import JSON
from mistral_portable.engine import Model

__all__ = ["model_card"]


def model_card(model: Model, name: str, created: int) -> JSON:
    """An entry of the list. created: Unix time."""
    tokenizer = model.tokenizer if model.has_tokenizer else None
    chats = tokenizer is not None and tokenizer.chats
    capabilities = {
        "completion_chat": chats,
        "completion_fim": tokenizer is not None and tokenizer.fills,
        "function_calling": chats and tokenizer is not None and tokenizer.version != "v1",
        "fine_tuning": False,
        "vision": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "mistral_portable",
        "max_model_len": model.max_context,
        "type": "base",
        "max_context_length": model.max_context,
        "capabilities": capabilities,
    }

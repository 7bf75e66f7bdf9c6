"""Shared by all APIs: bodies that are checked, and the conversation that a request of any API becomes."""

from mistral_portable.api.body import JSON, Body, check_body
from mistral_portable.api.conversation import ANY_OBJECT, Conversation

__all__ = ["ANY_OBJECT", "JSON", "Body", "Conversation", "check_body"]

"""Answers to chats, parsed token by token: content, reasoning and tool calls."""

from mistral_portable.answers.call_format import CallFormat, Slot, call_format
from mistral_portable.answers.chat import ChatParser
from mistral_portable.answers.deltas import (
    CallArguments,
    CallBegin,
    CallFailed,
    Content,
    Delta,
    Parts,
    Reasoning,
    ToolCall,
    join_deltas,
)
from mistral_portable.answers.parser import Parser, PlainText

__all__ = [
    "CallArguments",
    "CallBegin",
    "CallFailed",
    "CallFormat",
    "ChatParser",
    "Content",
    "Delta",
    "Parser",
    "Parts",
    "PlainText",
    "Reasoning",
    "Slot",
    "ToolCall",
    "call_format",
    "join_deltas",
]

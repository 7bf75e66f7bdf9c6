"""Answers to chats, parsed token by token: content, reasoning and tool calls."""

from mistral_portable.answers.call_format import CallFormat, Slot, call_format
from mistral_portable.answers.call_rule import CallRule, call_rule
from mistral_portable.answers.chat import ChatParser, leaves_thinking
from mistral_portable.answers.deltas import (
    CallArguments,
    CallBegin,
    CallEnd,
    CallFailed,
    Content,
    Delta,
    Parts,
    Reasoning,
    ToolCall,
    join_deltas,
)
from mistral_portable.answers.parser import Parser, PlainText
from mistral_portable.answers.tool_choice import ToolChoice, Tools, demanded, named, offered

__all__ = [
    "CallArguments",
    "CallBegin",
    "CallEnd",
    "CallFailed",
    "CallFormat",
    "CallRule",
    "ChatParser",
    "Content",
    "Delta",
    "Parser",
    "Parts",
    "PlainText",
    "Reasoning",
    "Slot",
    "ToolCall",
    "ToolChoice",
    "Tools",
    "call_format",
    "call_rule",
    "demanded",
    "join_deltas",
    "leaves_thinking",
    "named",
    "offered",
]

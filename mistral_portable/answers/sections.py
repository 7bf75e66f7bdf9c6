"""Sections of an answer, between its markers: content, reasoning, and what follows a complete call."""

from typing import Protocol

from mistral_portable.answers.deltas import Content, Delta, Reasoning

__all__ = ["AfterCalls", "ContentSection", "ReasoningSection", "Section"]


class Section(Protocol):
    """Turns the text between two markers into deltas."""

    def take(self, text: str) -> list[Delta]:
        """Take more text, which is never empty; return what is certain now."""

    def mark(self, token_id: int) -> list[Delta]:
        """Take a marker that begins no section of its own."""

    def end(self) -> list[Delta]:
        """Return the rest, as the section has ended."""


class ContentSection:
    """Content: all of it, at once."""

    def take(self, text: str) -> list[Delta]:
        return [Content(text)]

    def mark(self, token_id: int) -> list[Delta]:
        return []

    def end(self) -> list[Delta]:
        return []


class ReasoningSection(ContentSection):
    """Reasoning: all of it, at once."""

    def take(self, text: str) -> list[Delta]:
        return [Reasoning(text)]


class AfterCalls(ContentSection):
    """Text behind complete calls: content, without the white space before it, which models write there."""

    def __init__(self) -> None:
        self._begun = False

    def take(self, text: str) -> list[Delta]:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return [Content(text)] if text else []

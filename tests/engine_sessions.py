"""Texts of the tests of sessions."""

from typing import Any

GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
CHAT, OTHER = list(range(5, 105)), list(range(400, 520))

"""tool_choice: whether an answer may or must call a tool, and which, in the forms of OpenAI's and Mistral's APIs."""

from collections.abc import Mapping, Sequence
from typing import Any

from mistral_portable.answers.names import is_name
from mistral_portable.errors import InputError

__all__ = ["ToolChoice", "Tools", "demanded", "named", "offered"]

Tools = Sequence[Mapping[str, Any]]
"""Function schemas, as in OpenAI's and Mistral's API."""

ToolChoice = str | Mapping[str, Any]
"""auto: the model decides. none: no tool is shown. required, any: a tool must be called. `named(NAME)`: that one."""

_WORDS = ("auto", "none", "required", "any")


def named(name: str) -> Mapping[str, Any]:
    """The choice of one function: {"type": "function", "function": {"name": NAME}}."""
    return {"type": "function", "function": {"name": name}}


def offered(tools: Tools | None, choice: ToolChoice) -> Tools | None:
    """The tools that the prompt shows the model: all but for "none". Raises the errors of `demanded`."""
    demanded(tools, choice)
    return None if choice == "none" else tools


def demanded(tools: Tools | None, choice: ToolChoice) -> list[Mapping[str, Any]]:
    """The functions, {"name": ..., "parameters": ...}, of which the answer must call one; none if it need not.

    Raises InputError for a choice of another form, and where what must be called is not among the tools.
    """
    name = _name(choice)
    if choice in ("auto", "none"):
        return []
    functions = [_function(tool, index) for index, tool in enumerate(tools or ())]
    if not functions:
        raise InputError("tool_choice: a tool must be called, and there are none: give tools, or leave it out")
    found = [function for function in functions if name in (None, function["name"])]
    if not found:
        names = ", ".join(function["name"] for function in functions)
        raise InputError(f"tool_choice: {name!r:.60} is none of the tools: {names:.200}")
    return found


def _name(choice: ToolChoice) -> str | None:
    """The name of the function that must be called; None for a word."""
    if isinstance(choice, str) and choice in _WORDS:
        return None
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        form = '{"type": "function", "function": {"name": ...}}'
        raise InputError(f"tool_choice={choice!r:.80} must be {', '.join(map(repr, _WORDS))} or {form}")
    return name


def _function(tool: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not is_name(function.get("name")):
        raise InputError(f"tools.{index}: {tool!r:.80} has no function with a name of letters, digits, _ and -")
    return function

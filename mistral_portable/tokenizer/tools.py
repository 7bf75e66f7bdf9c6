"""Tools and calls of a chat, checked one by one as mistral-common checks all, so that an error names the place."""

from collections.abc import Mapping, Sequence
from typing import Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.faults import one_line

__all__ = ["check_call", "check_tools", "schema_fault"]


def check_tools(tools: Sequence[object], version: str) -> None:
    """Check the types of tools. version: of the chat template. Raises TokenizerError, in a line that names the tool."""
    from mistral_common.protocol.instruct.tool_calls import Tool

    if tools and version == "v1":
        raise TokenizerError("chat template v1 has no place for tools; leave them out")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise TokenizerError(f"tool {index} is {tool!r:.80}; pass a mapping with type and function")
        function = tool.get("function")
        if not isinstance(function, Mapping):
            raise TokenizerError(f"tool {index} has the function {function!r:.80}; pass a mapping with name")
        try:
            Tool.from_openai({**tool, "function": dict(function)})
        except Exception as error:  # pydantic's, and those of its validators
            raise TokenizerError(f"tool {index}: {one_line(error)}") from error


def schema_fault(tools: Sequence[Mapping[str, Any]]) -> str | None:
    """Say which tool has parameters that are no JSON schema, and why; None if all have one. It takes 0.3 ms for a tool,
    so it is asked only where mistral-common has refused one."""
    from jsonschema import Draft7Validator
    from jsonschema.exceptions import SchemaError

    for index, tool in enumerate(tools):
        try:
            Draft7Validator.check_schema(tool["function"].get("parameters") or {})
        except SchemaError as error:
            return f"tool {index}: parameters{error.json_path[1:]} is no JSON schema: {error.message:.120}"
        except RecursionError:
            return f"tool {index}: parameters are nested too deeply"
    return None


def check_call(call: Mapping[str, Any], where: str) -> None:
    """Check a call of an assistant's message, but its id. where: for the message of a TokenizerError."""
    from mistral_common.protocol.instruct.tool_calls import ToolCall

    try:
        ToolCall.from_openai({**call, "id": "null"})
    except Exception as error:  # pydantic's, and those of its validators
        raise TokenizerError(f"{where}: {one_line(error)}") from error

"""Takes the schemas of answers from OpenAI's published OpenAPI document: all that tests/openai_document/ holds.

    python tools/openai_schemas.py openapi.json tests/openai_document/schemas.json

openapi.json is https://github.com/openai/openai-openapi at the commit that tests/openai_document/README.md names.
Descriptions and examples are left out, and the `nullable` of OpenAPI 3.0, which some have, is written as 3.1 does.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOTS = [
    "CreateChatCompletionResponse",
    "CreateChatCompletionStreamResponse",
    "CreateCompletionResponse",
    "CreateEmbeddingResponse",
    "ErrorResponse",
    "ListModelsResponse",
    "Model",
    "Response",
    "ResponseStreamEvent",
]
PROSE = {"description", "example", "examples", "title", "deprecated"}


def main() -> None:
    """Write the schemas that ROOTS need, themselves included."""
    parser = argparse.ArgumentParser(description="Take the schemas of answers from OpenAI's document.")
    parser.add_argument("document", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    schemas = json.loads(arguments.document.read_text())["components"]["schemas"]
    needed, waiting = dict[str, Any](), list(ROOTS)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed[name] = plain(schemas[name])
            waiting += references(needed[name])
    lines = [f"{json.dumps(name)}: {json.dumps(needed[name], separators=(',', ':'))}" for name in sorted(needed)]
    arguments.out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def references(schema: Any) -> Iterator[str]:
    """The names of the schemas that one refers to."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref":
                yield value.removeprefix("#/components/schemas/")
            else:
                yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def plain(schema: Any, *, names: bool = False) -> Any:
    """A schema without prose. names: whether the keys are names of properties, which may be those of prose."""
    if isinstance(schema, list):
        return [plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if names or not (key in PROSE or key.startswith("x-"))}
    nullable = not names and kept.pop("nullable", False)
    made = {key: plain(value, names=key == "properties" and not names) for key, value in kept.items()}
    return {"anyOf": [made, {"type": "null"}]} if nullable else made


if __name__ == "__main__":
    main()

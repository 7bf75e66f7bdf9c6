"""Bodies for all POST endpoints: good ones, and a strategy that makes of them what hostile or broken clients send.

A change takes a place in a good body and puts something else there, takes it away, doubles it or adds a field; or it
damages the JSON text itself. What JSON's writer cannot write, such as 1e999, stands in a value as a RAW mark first.
"""

import copy
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

__all__ = ["GOOD", "Drawn", "bodies"]

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is the "}, {"type": "text", "text": "weather?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "cold"},
    {"role": "assistant", "content": "Cold."},
    {"role": "user", "content": "And now?"},
]
CHAT = [{"role": "user", "content": "Tom has a red ball."}]
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 9, "min_p": 0.01, "typical_p": 0.9, "repetition_penalty": 1.1}
PENALTIES = {"frequency_penalty": 0.5, "presence_penalty": 0.5, "logit_bias": {"5": 1.5}, "seed": 3, "stop": ["."]}
RULES: dict[str, Any] = {
    "repeat_last_n": 8,
    "top_n_sigma": 2.0,
    "xtc_probability": 0.5,
    "dry_multiplier": 0.5,
    "dry_sequence_breakers": ["a"],
    "dynatemp_range": 0.25,
    "mirostat": 2,
    "samplers": ["penalties", "dry", "top_k", "xtc", "temperature"],
    "min_tokens": 2,
}
EXTRAS = {"n": 2, "user": "u", "cache_salt": "s", "ignore_eos": False, "stream_options": {"include_usage": True}}

GOOD: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"model": "m", "messages": TURNS, "tools": [TOOL], "tool_choice": "auto", "stream": True, "max_tokens": 3},
        {"messages": CHAT, **SAMPLING, **PENALTIES, **EXTRAS, "logprobs": True, "top_logprobs": 2},
        {
            "messages": CHAT,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}},
        },
        {"messages": CHAT, **RULES, "max_tokens": 3},
        {"messages": CHAT, "regex": "(red|blue) [0-9]{3}", "max_completion_tokens": 3},
        {"messages": CHAT, "grammar": 'start: "yes" | "no"', "stream": True},
    ],
    "/v1/completions": [
        {"prompt": "Once", **SAMPLING, **PENALTIES, **EXTRAS, "logprobs": 2, "stream": True},
        {"prompt": ["Once", "One day"], "max_tokens": 3, "echo": False},
        {"prompt": [[1, 5, 9], [1, 7]], "max_tokens": 2},
    ],
    "/v1/responses": [
        {"input": "Hello", "instructions": "Be brief.", "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 3},
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "The weather?"}]},
                {"type": "reasoning", "summary": [], "encrypted_content": "e"},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "cold"},
                {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
                {"role": "user", "content": "And now?"},
            ],
            "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}],
            "tool_choice": "auto",
            "stream": True,
            "metadata": {"a": "b"},
            "store": False,
            "truncation": "disabled",
        },
        {"input": "Hello", "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}}},
    ],
    "/v1/embeddings": [
        {"input": "Hello", "encoding_format": "base64"},
        {"input": ["Hello", "you"], "dimensions": None},
        {"input": [[1, 5, 9], [1, 7]], "model": "m"},
    ],
    "/v1/fim/completions": [
        {"prompt": "a =", "suffix": "\n", "temperature": 0.2, "max_tokens": 3, "stop": ["."], "random_seed": 3}
    ],
    "/v1/messages": [
        {
            "model": "m",
            "max_tokens": 3,
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "The weather?"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "redacted_thinking", "data": "d"},
                        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bonn"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "cold", "is_error": True},
                        {"type": "text", "text": "And now?"},
                    ],
                },
            ],
            "tools": [{"name": "weather", "description": "Tells it.", "input_schema": SCHEMA}],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            "stream": True,
        },
        {
            "messages": CHAT,
            "max_tokens": 3,
            "stop_sequences": ["."],
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 9,
            "metadata": {"user_id": "u"},
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
    ],
    "/v1/messages/count_tokens": [
        {"messages": CHAT, "system": "Be brief.", "tools": [{"name": "weather", "input_schema": SCHEMA}]}
    ],
    "/api/chat": [
        {"model": "m", "messages": CHAT, "options": {"num_predict": 3, "temperature": 0.5, "top_k": 9, "stop": ["."]}},
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": "The weather?"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Bonn"}}}]},
                {"role": "tool", "tool_name": "weather", "content": "cold"},
            ],
            "tools": [TOOL],
            "stream": False,
            "logprobs": True,
            "top_logprobs": 2,
        },
        {"model": "m", "messages": CHAT, "format": SCHEMA, "stream": False},
    ],
    "/api/generate": [
        {"model": "m", "prompt": "Hello", "system": "Be brief.", "options": {"seed": 3, "repeat_penalty": 1.1}},
        {"model": "m", "prompt": "Once", "raw": True, "stream": False, "format": "json"},
    ],
    "/api/embed": [{"model": "m", "input": ["Hello", "you"]}],
    "/api/embeddings": [{"model": "m", "prompt": "Hello"}],
    "/api/show": [{"model": "m"}],
    "/tokenize": [
        {"content": "Hello", "add_special": True, "with_pieces": True},
        {"messages": TURNS, "tools": [TOOL]},
    ],
    "/detokenize": [{"tokens": [1, 5, 9]}],
    "/apply-template": [{"messages": TURNS, "tools": [TOOL]}],
    "/sessions/fuzzed/save": [{"messages": CHAT}, {"prompt": "Once"}],
    "/info/attention": [{"text": "Once upon a time"}],
}
"""Bodies that are answered, by path; /v1/fim/completions with a tokenizer that has its tokens."""

RAW = {
    "<huge>": "1e999",
    "<long>": "1" * 5000,
    "<tiny>": "-1e-999",
    "<deep>": "[" * 300 + "]" * 300,
    "<deeper>": '{"a":' * 5000 + "1" + "}" * 5000,
    "<same>": '{"type": "text", "type": 5, "type": "text"}',
}
PARTS = [
    {"type": "text", "text": "x"},
    {"type": "input_text", "text": "x"},
    {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,!!!"}},
    {"type": "image_url", "image_url": "file:///etc/passwd"},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}},
    {"type": "file", "file": {"file_id": "f", "filename": "/etc/passwd"}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
    {"type": "document", "source": {"type": "url", "url": "http://127.0.0.1:1"}},
    {"type": "thinking", "thinking": [{"type": "text", "text": "x"}], "closed": True},
    {"type": "thinking", "thinking": "x", "signature": "s"},
    {"type": "refusal", "refusal": "x"},
    {"type": "tool_use", "id": "t", "name": "weather", "input": {}},
    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]},
    {"type": "item_reference", "id": "x"},
    {"type": None},
    {"type": ["text"]},
    {},
]
TEXTS = ["", " ", "\0", "\ud800", "\udfff\ud800 x", "\U0001f600", "</s>", "[INST]", "[TOOL_CALLS]", "a" * 10**5, "\r\n"]
WORDS = ["user", "assistant", "system", "developer", "tool", "function", "king", "text", "json_object", "json_schema"]
WORDS += ["required", "any", "none", "auto", "base64", "abcdefghi", "start: (", "(", "[a-z]{1,999}", "(a{99}){99}"]
NUMBERS = [0, -1, 1, 2, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e308, 5e-324]
NUMBERS += [float("nan"), float("inf"), float("-inf")]
SCHEMAS = [
    {"type": "nothing"},
    {"$ref": "#"},
    {"$ref": "file:///etc/passwd"},
    {"pattern": "(a+)+$", "type": "string"},
    {"enum": []},
    {"minLength": 10**9, "type": "string"},
    {"not": {}},
]

SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.sampled_from(TEXTS)
    | st.sampled_from(WORDS)
    | st.sampled_from(sorted(RAW))
    | st.text(st.characters(), max_size=9)
    | st.integers(-99, 999)
)
FIELDS = {name for good in GOOD.values() for body in good for name in body}
NAMES = st.sampled_from(
    sorted({*FIELDS, "type", "text", "role", "content", "name", "id", "function", "arguments", "", "a"})
)
HOSTILE = (
    SCALARS
    | st.sampled_from(PARTS)
    | st.lists(st.sampled_from(PARTS), max_size=3)
    | st.sampled_from(SCHEMAS)
    | st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=6,
    )
)
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Drawn:
    """data: the body's bytes. place: of its one change, where it has exactly one that puts a value at a place; so a
    refusal must be about that place."""

    data: bytes
    place: Place | None

    def __repr__(self) -> str:
        return f"Drawn({self.data[:2000]!r}, {self.place})"


@st.composite
def bodies(draw: st.DrawFn, path: str) -> Drawn:
    """Bodies for an endpoint, of which most are nearly right."""
    body = copy.deepcopy(draw(st.sampled_from(GOOD[path])))
    count = draw(st.sampled_from([0, 1, 1, 1, 1, 2, 3]))
    placed = [_change(draw, body) for _ in range(count)]
    text = json.dumps(body)
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    data = text.encode()
    if draw(st.integers(0, 9)) == 0:
        return Drawn(_damaged(draw, data), None)
    return Drawn(data, placed[0] if count == 1 else None)


def _change(draw: st.DrawFn, body: dict[str, Any]) -> Place | None:
    """Change a body; return the place if a value has been put there."""
    places = _places(body)
    if not places:
        return None
    place = draw(st.sampled_from(places))
    holder: Any = body
    for step in place[:-1]:
        holder = holder[step]
    match draw(st.sampled_from(["put", "put", "put", "take", "double", "add"])):
        case "put":
            holder[place[-1]] = copy.deepcopy(draw(HOSTILE))
            return place
        case "take":
            del holder[place[-1]]
        case "double" if isinstance(holder, list):
            holder += holder[: draw(st.integers(1, 3))]
        case _:
            if isinstance(holder, dict):
                holder[draw(NAMES)] = copy.deepcopy(draw(HOSTILE))
    return None


def _places(value: Any, before: Place = ()) -> list[Place]:
    """All places in a JSON value but the whole of it, from the outside in."""
    match value:
        case dict():
            steps: list[Any] = list(value)
        case list():
            steps = list(range(len(value)))
        case _:
            return []
    inner = [place for step in steps for place in _places(value[step], (*before, step))]
    return [*((*before, step) for step in steps), *inner]


def _damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes that are likely to be no JSON."""
    cut = draw(st.integers(0, len(data)))
    junk = draw(st.sampled_from([b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b",", b"}", b"[" * 10**5, b'"', b"NaN"]))
    return draw(st.sampled_from([data[:cut] + junk, data[:cut] + junk + data[cut:], junk, junk + data]))

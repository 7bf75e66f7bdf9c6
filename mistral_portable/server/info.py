"""A model as the page shows it: `GET /info`, and `POST /info/attention`, which says what each token of a text sees."""

import asyncio
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mistral_portable.boundary import OwnMemory
from mistral_portable.cache import first_visible
from mistral_portable.engine import Model
from mistral_portable.engine.generation import peak_memory_bytes
from mistral_portable.errors import InputError

__all__ = ["attention", "describe", "info_routes"]

JSON = dict[str, Any]

_MOST_CHARACTERS = 4000
_MOST_TOKENS = 128  # rows of a picture


class _Text(BaseModel):
    """The body of /info/attention."""

    model_config = ConfigDict(strict=True, extra="ignore")

    text: str = Field(min_length=1, max_length=_MOST_CHARACTERS)


def info_routes(model: Model, name: str) -> list[Route]:
    """The two routes. name: the model's, as clients know it. They raise InputError, which the app answers by 400."""

    async def send_info(request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(describe, model, name))

    async def send_attention(request: Request) -> Response:
        try:
            asked = _Text.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "body"
            raise InputError(f"{where}: {first['msg']}, got {first['input']!r:.60}") from error
        return JSONResponse(await asyncio.to_thread(attention, model, asked.text))

    return [Route("/info", send_info), Route("/info/attention", send_attention, methods=["POST"])]


def describe(model: Model, name: str) -> JSON:
    """The shape of a model, its windows and its memory in bytes, as it is now; no path of this machine."""
    config, program, manager = model.config, model.program, model.manager
    groups = manager.spec.groups
    return {
        "model": name,
        "backend": model.backend,
        "dtype": program.precision.dtype,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "experts": config.num_local_experts,
        "vocabulary": config.vocab_size,
        "tokenizer": f"{model.tokenizer.kind} {model.tokenizer.version}" if model.has_tokenizer else None,
        "max_context": model.max_context,
        "windows": [{"window": group.window, "layers": len(group.layers)} for group in groups],
        "memory": {
            "peak_bytes": program.peak_memory_bytes if isinstance(program, OwnMemory) else peak_memory_bytes(),
            "cache_bytes": program.cache_bytes,
            "cache_in_use_bytes": manager.bytes_in_use,
            "token_bytes": sum(program.slot_bytes(group) for group in range(len(groups))),
            "scratch_bytes": program.scratch_bytes,
        },
    }


def attention(model: Model, text: str) -> JSON:
    """The first tokens of a text, at most 128, and for each window the oldest of them that each token sees.

    Example, three tokens and window 2: {"tokens": ["a", "b", "c"], "left_out": 0,
    "panels": [{"window": 2, "layers": 4, "first": [0, 0, 1]}]}.
    """
    ids = model.tokenizer.encode(text, bos=False)
    shown = ids[:_MOST_TOKENS]
    return {
        "tokens": [model.tokenizer.token_bytes(token).decode(errors="replace") for token in shown],
        "left_out": len(ids) - len(shown),
        "panels": [
            {
                "window": group.window,
                "layers": len(group.layers),
                "first": [first_visible(query, group.window) for query in range(len(shown))],
            }
            for group in model.manager.spec.groups
        ],
    }

"""A model as the page shows it: `GET /info`, and `POST /info/attention`, which says what each token of a text sees."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mistral_portable.boundary import OwnMemory
from mistral_portable.cache import first_visible
from mistral_portable.engine import Model
from mistral_portable.engine.generation import peak_memory_bytes
from mistral_portable.server.endpoint import Endpoint
from mistral_portable.server.service import Service

__all__ = ["attention", "describe", "endpoints"]

JSON = dict[str, Any]

_MOST_CHARACTERS = 4000
_MOST_TOKENS = 128  # rows of a picture


class AttentionRequest(BaseModel):
    """A text whose attention is wanted."""

    model_config = ConfigDict(strict=True, extra="ignore")

    text: str = Field(min_length=1, max_length=_MOST_CHARACTERS)


def endpoints(service: Service) -> list[Endpoint]:
    """The operations of the page's view of the model."""

    async def send_info(request: Request, body: None) -> Response:
        return JSONResponse(await service.in_thread(describe, service.model, service.settings.alias))

    async def send_attention(request: Request, body: AttentionRequest) -> Response:
        return JSONResponse(await service.in_thread(attention, service.model, body.text))

    return [
        Endpoint("GET", "/info", "Describe the model, its windows and its memory", send_info),
        Endpoint("POST", "/info/attention", "Say which tokens see which", send_attention, AttentionRequest),
    ]


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

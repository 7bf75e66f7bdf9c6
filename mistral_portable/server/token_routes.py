"""Tokens: what a text or a chat becomes, and back; the endpoints of llama-server and vLLM."""

from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mistral_portable.errors import InputError
from mistral_portable.openai.requests import Effort, Many
from mistral_portable.server.endpoint import Endpoint
from mistral_portable.server.service import Service
from mistral_portable.tokenizer import Tokenizer

__all__ = ["endpoints"]


class TemplateRequest(BaseModel):
    """A chat whose prompt is wanted."""

    model_config = ConfigDict(strict=True, extra="ignore")

    messages: Many[dict[str, Any]]
    tools: Many[dict[str, Any]] | None = None
    reasoning_effort: Effort | None = None


class TokenizeRequest(BaseModel):
    """A text (`content`, also `prompt`) or a chat whose token ids are wanted. add_special: whether a text begins with
    `<s>`. with_pieces: whether each id comes with its text."""

    model_config = ConfigDict(strict=True, extra="ignore")

    content: str | None = Field(None, validation_alias=AliasChoices("content", "prompt"))
    messages: Many[dict[str, Any]] | None = None
    tools: Many[dict[str, Any]] | None = None
    reasoning_effort: Effort | None = None
    add_special: bool = Field(False, validation_alias=AliasChoices("add_special", "add_special_tokens"))
    with_pieces: bool = False


class DetokenizeRequest(BaseModel):
    """Token ids whose text is wanted."""

    model_config = ConfigDict(strict=True, extra="ignore")

    tokens: Many[int]


def endpoints(service: Service) -> list[Endpoint]:
    """The operations on tokens."""
    model = service.model

    def chat_of(body: TemplateRequest | TokenizeRequest, messages: list[dict[str, Any]]) -> list[int]:
        return model.tokenizer.chat(messages, tools=body.tools, reasoning_effort=body.reasoning_effort)

    def tokens_of(body: TokenizeRequest) -> list[int]:
        if (body.content is None) == (body.messages is None):
            raise InputError("content, messages: give one of the two")
        if body.messages is not None:
            return chat_of(body, body.messages)
        return model.tokenizer.encode(body.content or "", bos=body.add_special)

    async def tokenize(request: Request, body: TokenizeRequest) -> Response:
        tokens = await service.in_thread(tokens_of, body)
        shown: list[Any] = tokens
        if body.with_pieces:
            shown = [{"id": token, "piece": _json_text(_bytes(model.tokenizer, token))} for token in tokens]
        return JSONResponse({"tokens": shown, "count": len(tokens), "max_model_len": model.max_context})

    async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
        text = await service.in_thread(model.tokenizer.decode, body.tokens)
        return JSONResponse({"content": text, "prompt": text})

    async def apply_template(request: Request, body: TemplateRequest) -> Response:
        tokens = await service.in_thread(chat_of, body, body.messages)
        text = b"".join(_bytes(model.tokenizer, token) for token in tokens)
        return JSONResponse({"prompt": text.decode(errors="replace"), "tokens": tokens})

    return [
        Endpoint("POST", "/tokenize", "Make token ids of a text or a chat", tokenize, TokenizeRequest),
        Endpoint("POST", "/detokenize", "Make text of token ids", detokenize, DetokenizeRequest),
        Endpoint("POST", "/apply-template", "Make the prompt of a chat", apply_template, TemplateRequest),
    ]


def _bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes that a token adds to a text, or the name of a special one, such as "[INST]"."""
    if tokenizer.is_special(token):
        return tokenizer.decode([token], skip_special_tokens=False).encode()
    return tokenizer.token_bytes(token)


def _json_text(piece: bytes) -> str | list[int]:
    """A piece as llama-server writes it: a part of a character is a list of bytes."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)

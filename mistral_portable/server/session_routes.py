"""Sessions by name: what has been read is written to a file of the operator's folder, and read back."""

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mistral_portable.errors import InputError
from mistral_portable.openai.requests import Effort, Many
from mistral_portable.server.endpoint import Endpoint
from mistral_portable.server.errors import HTTPError
from mistral_portable.server.service import Service

__all__ = ["endpoints"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SUFFIX = ".session"


class SaveRequest(BaseModel):
    """Whose beginning is to be saved: a text, token ids or a chat; none of them: the text that ended last.

    model: the adapter that has read the text or the chat, if one has.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    prompt: str | Many[int] | None = None
    messages: Many[dict[str, Any]] | None = None
    tools: Many[dict[str, Any]] | None = None
    reasoning_effort: Effort | None = None
    model: str | None = None


def endpoints(service: Service) -> list[Endpoint]:
    """The operations on sessions."""
    model = service.model

    def file_of(request: Request) -> Path:
        name = request.path_params["name"]
        if not _NAME.fullmatch(name):
            raise InputError(f"session {name!r:.80}: a name has 1 to 64 letters, digits, - and _")
        return _folder(service) / f"{name}{_SUFFIX}"

    def existing(request: Request) -> Path:
        file = file_of(request)
        if not file.is_file():
            raise HTTPError(404, f"session {file.stem!r}: there is none of this name; GET /sessions lists them")
        return file

    def saved(file: Path, body: SaveRequest) -> int:
        if body.messages is None and body.prompt is None:
            return model.save_session(file)
        adapter = service.adapter(service.name_of(body.model))
        if body.messages is None:
            return model.save_session(file, body.prompt, adapter=adapter)
        tokens = model.tokenizer.chat(body.messages, tools=body.tools, reasoning_effort=body.reasoning_effort)
        return model.save_session(file, tokens, messages=body.messages, adapter=adapter)

    async def save(request: Request, body: SaveRequest | None) -> Response:
        file = file_of(request)
        tokens = await service.in_thread(saved, file, body or SaveRequest())
        return JSONResponse({"name": file.stem, "tokens": tokens, "bytes": file.stat().st_size})

    async def restore(request: Request, body: None) -> Response:
        file = existing(request)
        return JSONResponse({"name": file.stem, "tokens": await service.in_thread(model.load_session, file)})

    async def delete(request: Request, body: None) -> Response:
        file = existing(request)
        file.unlink(missing_ok=True)
        return JSONResponse({"name": file.stem, "deleted": True})

    async def listed(request: Request, body: None) -> Response:
        files = sorted(_folder(service).glob(f"*{_SUFFIX}"))
        return JSONResponse({"sessions": [{"name": file.stem, "bytes": file.stat().st_size} for file in files]})

    return [
        Endpoint("GET", "/sessions", "List saved sessions", listed, errors=(404,)),
        Endpoint("POST", "/sessions/{name}/save", "Save what is known of a text", save, SaveRequest, True),
        Endpoint("POST", "/sessions/{name}/restore", "Make a saved text known", restore),
        Endpoint("DELETE", "/sessions/{name}", "Delete a saved session", delete),
    ]


def _folder(service: Service) -> Path:
    if service.settings.sessions_dir is None:
        raise HTTPError(404, "this server keeps no sessions: start it with --sessions-dir FOLDER")
    return service.settings.sessions_dir

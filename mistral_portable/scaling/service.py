"""A service on Ray Serve: replicas of the server's application, behind one that chooses them by prompts' beginnings.

A request goes from Serve's proxy to an `_Entrance`, which reads its body and asks the router of the replicas' handle
(`PrefixRouter`); a `_Replica` runs the application of `server/app.py` and sends its ASGI messages back.
"""

import asyncio
import inspect
import json
import logging
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import RequestRouterConfig
from ray.serve.context import _get_global_client
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

from mistral_portable.clusters import connect
from mistral_portable.engine import load as load_model
from mistral_portable.errors import BackendError, InputError
from mistral_portable.scaling.prefix_routing import PrefixRouting, prefixes
from mistral_portable.server import Service, Settings, create_app
from mistral_portable.server.bodies import BodyReader
from mistral_portable.server.connection import ClientGone
from mistral_portable.server.errors import Failure, error_body, failure_of
from mistral_portable.server.events import sse
from mistral_portable.server.keys import read_keys

__all__ = ["PrefixRouter", "Replicas", "application", "build", "run_service"]

_GONE = Failure(503, "the replica that made this answer has ended: ask again", {"Retry-After": "1"})
_MODEL = "model"
_NAME = "mistral-portable"
_HEALTH_S = 10.0  # between questions whether a replica lives, and for its answer


@dataclass(frozen=True)
class Replicas:
    """How many there are, and how large. most: where the number follows the load; None: it is `least`. ongoing:
    requests of one that run at a time, which is what the number aims at; further ones wait. by_prefix: whether a
    replica is chosen by what it has read."""

    least: int = 1
    most: int | None = None
    threads: int = 1
    ongoing: int = 8
    by_prefix: bool = True


class PrefixRouter(RequestRouter):
    """Chooses among replicas by the beginnings that a request's last argument lists."""

    def initialize_state(self, slack: int) -> None:
        """Called by Serve with the router's settings. slack: as `PrefixRouting` takes it."""
        self._routing = PrefixRouting(slack)
        self._loads = Counter[str]()

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        """Count a request; called by Serve."""
        self._loads[replica_id.unique_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count it no more; called by Serve."""
        self._loads[replica_id.unique_id] -= 1

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas, each a rank of its own, the best one first."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        self._loads = Counter({name: self._loads[name] for name in by_name})
        loads = {name: self._loads[name] for name in by_name}
        return [[by_name[name]] for name in self._routing.choose(pending_request.args[-1], loads)]


class _Replica:
    """The server's application around a model."""

    def __init__(self, options: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self._app = create_app(Service(load_model(**options), Settings(**settings)))

    async def answer(self, scope: Scope, body: bytes, beginnings: list[bytes]) -> AsyncGenerator[Message, None]:
        """The application's messages to a request. Closing it ends the request, as if the client had gone."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=16)
        unread, gone = [body], asyncio.Event()

        async def receive() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app(scope, receive, messages.put)
            finally:
                if not gone.is_set():  # nobody reads what is put then, and there may be no room
                    await messages.put(None)

        task = asyncio.ensure_future(run())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task
        finally:
            gone.set()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


class _Entrance:
    """Reads requests, and sends on what replicas answer."""

    def __init__(self, replicas: Any, max_body: int) -> None:
        self._replicas = replicas.options(stream=True, method_name="answer")
        self._reader = BodyReader(max_body)

    def __serve_build_asgi_app__(self) -> Starlette:
        return Starlette(routes=[Mount("/", app=self._forward)])

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        started: Message | None = None
        try:
            async with self._reader.read(Request(scope, receive)) as data:
                body = bytes(data)
            messages = self._replicas.remote(_plain(scope), body, _beginnings(body))
            try:
                async for message in messages:
                    started = started or message
                    await send(message)
            finally:
                messages.cancel()  # nothing, if it has ended
        except ClientGone:
            return
        except RayError:
            await _end(scope, receive, send, started, _GONE)
        except Exception as error:
            await _end(scope, receive, send, started, failure_of(error))


def _plain(scope: Scope) -> Scope:
    """The part of a scope that the application needs, and that another process can be sent."""
    names = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")
    return {**{name: scope[name] for name in (*names, "client", "server") if name in scope}, "root_path": ""}


def _beginnings(body: bytes) -> list[bytes]:
    try:
        asked = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return []  # the replica says what is wrong with it
    return prefixes(asked) if isinstance(asked, dict) else []


async def _end(scope: Scope, receive: Receive, send: Send, started: Message | None, failure: Failure) -> None:
    """Tell the client of a failure: by a status, or if the response has begun, as the last event of its stream."""
    error = error_body(scope["path"], failure)
    if started is None:
        await JSONResponse(error, failure.status, dict(failure.headers))(scope, receive, send)
        return
    kind = dict(started.get("headers", ())).get(b"content-type", b"")
    if kind.startswith(b"text/event-stream"):
        event = "error" if scope["path"].startswith("/v1/messages") else None
        await send({"type": "http.response.body", "body": sse(error, event), "more_body": False})
    else:
        await send({"type": "http.response.body", "body": json.dumps(error).encode() + b"\n", "more_body": False})


def application(options: Mapping[str, Any], settings: Settings, replicas: Replicas) -> Any:
    """Serve's application of a model. options: arguments of `mistral_portable.load` in each replica."""
    scaled: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most is not None:
        scaled = {
            "autoscaling_config": {
                "min_replicas": replicas.least,
                "max_replicas": replicas.most,
                "target_ongoing_requests": replicas.ongoing,
            }
        }
    if replicas.by_prefix:
        scaled["request_router_config"] = RequestRouterConfig(
            request_router_class=PrefixRouter, request_router_kwargs={"slack": replicas.ongoing // 2}
        )
    common = {"health_check_period_s": _HEALTH_S, "health_check_timeout_s": 3 * _HEALTH_S}
    models = serve.deployment(
        _Replica,
        name=_MODEL,
        max_ongoing_requests=replicas.ongoing + settings.max_queue,
        graceful_shutdown_timeout_s=settings.deadline,
        ray_actor_options={"num_cpus": replicas.threads},
        **scaled,
        **common,
    )
    entrance = serve.deployment(
        serve.ingress()(_Entrance),
        name="entrance",
        max_ongoing_requests=10_000,
        graceful_shutdown_timeout_s=settings.deadline,
        ray_actor_options={"num_cpus": 0},
        **common,
    )
    bound = models.bind({**options, "threads": replicas.threads, "max_lanes": replicas.ongoing}, asdict(settings))
    return entrance.bind(bound, settings.max_body)


def build(arguments: dict[str, dict[str, Any]]) -> Any:
    """Serve's application, for its own configuration files: `import_path: mistral_portable.scaling.service:build`.

    arguments: "load": those of `mistral_portable.load`; "settings" and "replicas": those of the two classes. Requests
    must bring the key MISTRAL_PORTABLE_API_KEY, if that is set. Raises TypeError for names that are none or missing.
    """
    return _build(**arguments)


def _build(
    *, load: dict[str, Any], settings: dict[str, Any], replicas: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    inspect.signature(load_model).bind(**load)
    served = Settings(**settings)
    keys = read_keys(served.keys, None, os.environ)
    return application(load, replace(served, keys=keys), Replicas(**replicas))


def run_service(
    options: Mapping[str, Any],
    settings: Settings,
    replicas: Replicas,
    *,
    address: str,
    host: str,
    port: int,
    ready: Callable[[], object],
) -> None:
    """Serve a model on a Ray cluster. On "local" until SIGTERM or Ctrl-C; on any other it stays when this returns,
    until `serve shutdown`, and a call with other options replaces it, replica by replica.

    address: as `connect` takes it. host, port: of the proxy on each machine. ready: called when requests are answered.
    Raises the errors of `connect`, InputError if Serve runs already with another host or port, BackendError if replicas
    do not start.
    """
    with connect(address, cpus=(replicas.most or replicas.least) * replicas.threads):
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        serve.start(http_options={"host": host, "port": port})
        _check_place(host, port)
        try:
            serve.run(application(options, settings, replicas), name=_NAME, route_prefix="/")
        except RuntimeError as error:
            raise BackendError(f"a replica has not started: {_why(error)}") from error
        ready()
        if address != "local":
            return
        ended = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
        try:
            ended.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
            serve.shutdown()


def _check_place(host: str, port: int) -> None:
    """Raise InputError if Serve's proxies listen elsewhere: they ran before, and there is one set of them."""
    http = _get_global_client().http_config
    if (http.host, http.port) != (host, port):
        raise InputError(
            f"host={host} port={port}: Ray Serve runs on this cluster already: give host={http.host} port={http.port}, "
            "or end it before (serve shutdown)"
        )


def _why(error: RuntimeError) -> str:
    """The last line of what Serve says of the replicas that have not started, without the name of an error of ours."""
    found = serve.status().applications.get(_NAME)
    message = found.deployments[_MODEL].message if found and _MODEL in found.deployments else str(error)
    last = (message.strip().splitlines() or ["no reason was given"])[-1]
    return re.sub(r"^mistral_portable\.errors\.\w+: ", "", last)

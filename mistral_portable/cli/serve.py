"""`serve`: answer HTTP requests of OpenAI's API and others."""

import json
import logging
import os
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.groups import grouped
from mistral_portable.cli.loading import loader, reading
from mistral_portable.cli.model_name import placed
from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import CacheRamOption, ModelArgument, NamedOption, ray_option
from mistral_portable.cli.output import note
from mistral_portable.cli.ranges import with_range
from mistral_portable.cli.replica_options import ReplicaOptions
from mistral_portable.cli.sampling_options import SamplingSource
from mistral_portable.errors import BackendError, InputError

__all__ = ["serve"]

_PACKAGES = ("starlette", "uvicorn", "prometheus_client")


def _server(help: str, metavar: str = "N", *names: str, **settings: Any) -> Any:
    return typer.Option(
        *names, metavar=metavar, rich_help_panel="Server", show_default=True, **with_range(help, **settings)
    )


@grouped
def serve(
    *,
    model: ModelArgument = None,
    name: NamedOption = None,
    host: Annotated[str, _server("Address to listen on; 0.0.0.0: all of this machine.", "ADDRESS")] = "127.0.0.1",
    port: Annotated[int, _server("0: any free one.", low=0, high=65535)] = 8080,
    uds: Annotated[Path | None, _server("Listen on this unix socket instead.", "PATH")] = None,
    api_key: Annotated[
        list[str] | None,
        _server(
            "A key that requests must bring; may be given several times. Other users see it in the list of "
            "processes: better a file, or MISTRAL_PORTABLE_API_KEY.",
            "KEY",
        ),
    ] = None,
    api_key_file: Annotated[Path | None, _server("A file of keys, one in a line.", "FILE")] = None,
    allowed_host: Annotated[
        list[str] | None,
        _server(
            "A name that this server is called by, besides the local ones; '*': any. May be given several times.",
            "NAME",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        _server("A web page of another server that may call this one, such as https://app.example.", "ORIGIN"),
    ] = None,
    alias: Annotated[str | None, _server("The model's name in answers; by default that of its file.", "NAME")] = None,
    parallel: Annotated[int, _server("Answers that run at a time.", low=1)] = 8,
    max_queue: Annotated[
        int, _server("Answers that wait; further requests are told to come again (503).", low=0)
    ] = 512,
    max_body: Annotated[int, _server("Bytes of a request.", low=1)] = 8 * 2**20,
    max_tokens: Annotated[int | None, _server("The most tokens of an answer, whatever is asked for.", low=1)] = None,
    sessions_dir: Annotated[Path | None, _server("Keep sessions that clients save in this folder.", "FOLDER")] = None,
    deadline: Annotated[
        float, _server("Seconds that answers have to end after SIGTERM.", "S", low=0, real=True)
    ] = 30.0,
    embeddings: Annotated[
        Literal["last", "mean"] | None,
        _server("Make embeddings, too: of the last token's hidden state or of the mean of all.", "last|mean"),
    ] = None,
    sampling: Annotated[
        SamplingSource | None,
        _server(
            'How requests are answered that do not say it: "model", as the model\'s generation_config.json says; '
            "by default as each API says.",
            "model",
        ),
    ] = None,
    log: Annotated[Literal["text", "json"], _server("Form of the lines on stderr.", "text|json")] = "text",
    max_replicas: Annotated[
        int | None, ray_option("With --ray: up to so many where more requests run or wait than there are.", low=1)
    ] = None,
    scaling: ReplicaOptions,
    options: ModelOptions,
    cache_ram: CacheRamOption = None,
    debug: DebugOption = False,
) -> None:
    """Serve a model over HTTP: OpenAI's API, health, metrics. SIGTERM ends it when the running answers have ended."""
    model = placed(name, model)[0] or "tiny"
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise BackendError(f"serve needs {', '.join(missing)}: pip install 'mistral-portable[server]'")
    from mistral_portable.server import Service, Settings
    from mistral_portable.server.guard import LOCAL_HOSTS
    from mistral_portable.server.keys import read_keys
    from mistral_portable.server.lifecycle import listen_tcp, listen_unix
    from mistral_portable.server.lifecycle import serve as serve_on
    from mistral_portable.server.logs import set_up_logging

    keys = read_keys(api_key or (), api_key_file, os.environ)
    if sessions_dir is not None and not (sessions_dir.is_dir() and os.access(sessions_dir, os.W_OK)):
        raise InputError(f"--sessions-dir {sessions_dir}: is no folder that can be written: make it first")

    def settings_of(name: str) -> Settings:
        return Settings(
            alias=alias or name,
            keys=keys,
            allowed_hosts=(*LOCAL_HOSTS, host, *(allowed_host or ())),
            cors_origins=tuple(cors_origin or ()),
            max_queue=max_queue,
            max_body=max_body,
            max_tokens=max_tokens,
            sessions_dir=sessions_dir,
            deadline=deadline,
            embeddings=embeddings,
            adapters=options.arguments["adapter"] or {},
            sampling="model" if sampling is SamplingSource.MODEL else None,
        )

    address = scaling.cluster(options)
    if address is not None:
        if uds is not None or sessions_dir is not None:
            raise InputError("--uds and --sessions-dir do not go with --ray: there is no one machine that has them")
        if port == 0:
            raise InputError("--port 0 does not go with --ray: each machine listens on the same port")
        if max_replicas is not None and max_replicas < (scaling.replicas or 1):
            raise InputError(f"--max-replicas {max_replicas} is less than --replicas {scaling.replicas or 1}")
        arguments = {
            **scaling.arguments(model, options, cache_ram),
            "adapter": None,
            "embeddings": embeddings is not None,
        }
        from mistral_portable.scaling.service import Replicas, run_service

        settings = settings_of(Path(model).name)
        url = _url(host, port)

        waiting = ExitStack()

        def answering() -> None:
            waiting.close()
            note(f"serving {settings.alias} on {url}, on Ray")
            note(_curl("", url, with_key=bool(keys), chats=True))

        with waiting:
            report = waiting.enter_context(reading(f"{model} on Ray"))
            report("starting replicas", 0, 1)
            run_service(
                arguments,
                settings,
                Replicas(scaling.replicas or 1, max_replicas, scaling.threads_per_replica or 1, parallel),
                address=address,
                host=host,
                port=port,
                ready=answering,
            )
        return
    if max_replicas is not None:
        raise InputError("--max-replicas needs --ray, and does not go with --stages")
    load = loader(
        model, options, cache_ram=cache_ram, max_lanes=parallel, embeddings=embeddings is not None, by_name=True
    )
    listener = listen_tcp(host, port) if uds is None else listen_unix(uds)  # before a large model is loaded
    with listener, load() as loaded:
        settings = settings_of(Path(loaded.source).name)
        set_up_logging(log)
        if uds is None:
            url, reach = _url(host, listener.getsockname()[1]), ""
        else:
            url, reach = "http://localhost", f"--unix-socket {uds} "

        def ready() -> None:
            beside = f", with adapters {', '.join(settings.adapters)}" if settings.adapters else ""
            what = f"serving {settings.alias} ({loaded.backend}) on {url if uds is None else uds}{beside}"
            if log == "json":
                logging.getLogger("mistral_portable.server").info(what)
                return
            note(what)
            note(_curl(reach, url, with_key=bool(keys), chats=loaded.has_tokenizer))

        serve_on(Service(loaded, settings), listener, ready=ready)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _curl(reach: str, url: str, *, with_key: bool, chats: bool) -> str:
    """A command that asks the server something, to be pasted into a shell."""
    key = "-H 'Authorization: Bearer YOUR_KEY' " if with_key else ""
    message = [{"role": "user", "content": "Tom has a red ball. What color is the ball?"}]
    path, body = ("chat/completions", {"messages": message}) if chats else ("completions", {"prompt": [1]})
    return f"try: curl {reach}{url}/v1/{path} {key}-H 'Content-Type: application/json' -d '{json.dumps(body)}'"

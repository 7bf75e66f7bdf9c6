"""OpenAI's and Anthropic's own clients in Node. Their programs are in tests/server/node/, whose packages
`npm ci --prefix tests/server/node` installs."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from scripted import call_tokens, scripted
from serving import CHAT, PATIENCE, Running, serving, wait_until

import mistral_portable as mp

FOLDER = Path(__file__).parent / "node"

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed"),
    pytest.mark.skipif(
        not (FOLDER / "node_modules").exists(), reason="packages of Node: npm ci --prefix tests/server/node"
    ),
]

clients = pytest.mark.parametrize("client", ["openai", "anthropic"])


def start(server: Running, client: str, case: str) -> subprocess.Popen[str]:
    """Start a case of a client's program."""
    command = ["node", f"{client}.mjs", server.url, case]
    return subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> Any:
    """Wait for the end of a case; return what the client made of the answers."""
    with process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0, err
    return json.loads(out)


def ask(server: Running, client: str, case: str) -> Any:
    """Run a case of a client's program; return what the client made of the answers."""
    return end(start(server, client, case))


@pytest.mark.parametrize("case", ["chat", "stream"])
def test_an_openai_chat_is_the_model_s(server: Running, model: mp.Model, case: str) -> None:
    found = ask(server, "openai", case)
    alone = model.chat(CHAT, temperature=0, max_tokens=None)
    assert (found["content"], found["role"], found["finish_reason"]) == (alone.text, "assistant", "stop")
    assert found["usage"]["completion_tokens"] == len(alone.tokens)
    assert found.get("same", True)


@pytest.mark.parametrize("case", ["chat", "stream"])
def test_an_anthropic_message_is_the_model_s(server: Running, model: mp.Model, case: str) -> None:
    found = ask(server, "anthropic", case)
    alone = model.chat(CHAT, temperature=0, max_tokens=50)
    assert (found["content"], found["role"], found["stop_reason"]) == (alone.text, "assistant", "end_turn")
    assert found["usage"]["output_tokens"] == len(alone.tokens)
    assert found.get("same", True)


def test_a_response_is_the_model_s(server: Running, model: mp.Model) -> None:
    found = ask(server, "openai", "responses")
    assert found == {"content": model.chat(CHAT, temperature=0).text, "status": "completed", "same": True}


@clients
@pytest.mark.parametrize("case", ["tools", "streamed_tools"])
def test_a_tool_is_called_and_its_result_answered(server: Running, model: mp.Model, client: str, case: str) -> None:
    call = call_tokens(model, '[{"name": "weather", "arguments": {"city": "Köln"}}]')
    answer = model.tokenizer.encode("Take a coat.", bos=False)
    with scripted(model, [*call, model.tokenizer.eos_id, *answer]):
        found = ask(server, client, case)
    assert (found["content"].strip(), found["asked"]) == ("Take a coat.", ["Köln"])
    assert found.get("stop_reason", "tool_use") == "tool_use"


@clients
def test_a_schema_is_kept(server: Running, client: str) -> None:
    schema = {"properties": {"color": {"enum": ["red", "white"]}}, "required": ["color"], "additionalProperties": False}
    jsonschema.validate(ask(server, client, "schema"), schema)


@clients
def test_a_stream_that_is_left_gives_its_lane_back(server: Running, model: mp.Model, client: str) -> None:
    assert ask(server, client, "left")
    wait_until(lambda: server.service.queue.open == 0 and model.manager.lanes == ())


@clients
def test_models(server: Running, client: str) -> None:
    assert ask(server, client, "models") == ["tiny"]


def test_tokens_are_counted(server: Running, model: mp.Model) -> None:
    assert ask(server, "anthropic", "count") == len(model.tokenizer.chat(CHAT))


@clients
def test_what_is_refused_is_the_client_s_error(server: Running, client: str) -> None:
    wrong, long, unknown = ask(server, client, "refused")
    for error, words in ((wrong, "temperature"), (long, "tokens")):
        assert (error["kind"], error["status"], error["type"]) == ("BadRequestError", 400, "invalid_request_error")
        assert words in error["message"]
    assert (unknown["kind"], unknown["status"]) == ("NotFoundError", 404)


@clients
def test_a_key_is_found_where_the_client_writes_it(model: mp.Model, client: str) -> None:
    with serving(model, keys=("any",)) as server:
        assert ask(server, client, "models") == ["tiny"]
    with serving(model, keys=("secret",)) as server:
        errors = ask(server, client, "refused")
    assert {(error["kind"], error["status"]) for error in errors} == {("AuthenticationError", 401)}


@clients
def test_a_client_tries_again_where_the_queue_was_full(model: mp.Model, client: str) -> None:
    path = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}[client]
    with serving(model, max_queue=0) as server:
        with server.service.queue.admit(server.service.queue.limit):
            process = start(server, client, "retries")
            wait_until(lambda: server.metric(f'requests_total{{path="{path}",status="503"}}') > 0)
        assert end(process) == model.chat(CHAT, temperature=0).text

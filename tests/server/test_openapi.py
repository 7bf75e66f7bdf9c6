"""The OpenAPI document is true: schemathesis draws requests from it, right and wrong ones, and checks the responses.

Not checked is whether a request that fits its schema is accepted: what a chat's template allows, say, no schema tells.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from server.drawn_bodies import GOOD
from serving import Running, serving, wait_until

import mistral_portable as mp

KEY = "secret"
HEADERS = {"Authorization": f"Bearer {KEY}"}
READ = ["/v1/models", "/v1/models/{model}", "/api/tags", "/api/ps", "/api/version", "/sessions", "/info"]
READ += ["/health", "/ready", "/metrics", "/openapi.json"]
WRITTEN = [path.replace("fuzzed", "{name}") for path in GOOD] + ["/sessions/{name}/restore"]
OPERATIONS = [(path, "get") for path in READ] + [(path, "post") for path in WRITTEN] + [("/sessions/{name}", "delete")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose answers and prompts are short, so that many fit into a second."""
    folder: Path = tmp_path_factory.mktemp("sessions")
    with mp.load("tiny", backend="numba", max_lanes=4, max_context=512, embeddings=True) as model:
        options: dict[str, Any] = {"max_tokens": 4, "max_queue": 8, "embeddings": "last", "sessions_dir": folder}
        with serving(model, keys=(KEY,), **options) as running:
            yield running


@pytest.fixture(scope="module")
def document(server: Running) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=HEADERS)


def test_every_operation_is_asked(document: Any) -> None:
    operations = {(path, method) for path, methods in document.raw_schema["paths"].items() for method in methods}
    assert operations == set(OPERATIONS)


RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
MODES = [(*operation, RIGHT) for operation in OPERATIONS] + [(path, "post", WRONG) for path in WRITTEN]


@pytest.mark.parametrize(("path", "method", "mode"), MODES)
@settings(max_examples=settings().max_examples // 10)
@given(data=st.data())
def test_responses_are_those_of_the_document(
    document: Any, server: Running, path: str, method: str, mode: GenerationMode, data: st.DataObject
) -> None:
    case = data.draw(document[path][method].as_strategy(generation_mode=mode))
    case.call_and_validate(headers=HEADERS, excluded_checks=[checks.CHECKS.get_one("positive_data_acceptance")])
    wait_until(lambda: server.service.queue.open == 0 and server.service.model.manager.lanes == ())

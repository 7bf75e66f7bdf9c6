"""The server's description of a model: its shape, its memory, and its attention."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

import mistral_portable as mp
from mistral_portable.cache import visible
from mistral_portable.engine import Model
from mistral_portable.server import Service, Settings, create_app
from mistral_portable.server.info_routes import attention, describe


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with mp.load("tiny", backend="reference", window=3) as model:
        yield model


@pytest.fixture(scope="module")
def client(model: Model) -> TestClient:
    return TestClient(create_app(Service(model, Settings("a-name"))))


def test_the_shape_of_the_model(client: TestClient, model: Model) -> None:
    info = client.get("/info").json()
    assert info["model"] == "a-name"
    assert (info["layers"], info["hidden_size"]) == (model.config.num_hidden_layers, model.config.hidden_size)
    assert info["windows"] == [{"window": 3, "layers": 4}]
    assert info["max_context"] == model.max_context
    assert model.source not in str(info)  # no paths of this machine


def test_memory_is_that_of_the_program(model: Model) -> None:
    model.generate("Once upon a time", max_tokens=8)
    memory = describe(model, "tiny")["memory"]
    assert memory["cache_bytes"] == model.program.cache_bytes > 0
    assert memory["cache_in_use_bytes"] == model.manager.bytes_in_use > 0
    assert memory["token_bytes"] == 4 * 2 * 2 * 32 * 4  # layers, keys and values, heads, head_dim, float32
    assert memory["peak_bytes"] > memory["cache_bytes"]


@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40))
def test_the_picture_is_the_window(model: Model, text: str) -> None:
    picture = attention(model, text)
    ids = model.tokenizer.encode(text, bos=False)
    assert len(picture["tokens"]) + picture["left_out"] == len(ids)
    [panel] = picture["panels"]
    for query, first in enumerate(panel["first"]):
        assert [visible(query, key, 3) for key in range(query + 1)] == [key >= first for key in range(query + 1)]


def test_a_long_text_is_drawn_in_part(client: TestClient) -> None:
    picture = client.post("/info/attention", json={"text": "word " * 700}).json()
    assert len(picture["tokens"]) == 128
    assert picture["left_out"] > 500


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"no JSON", "body: "),
        (b"[]", "body: "),
        (b"{}", "text: "),
        (b'{"text": 5}', "text: "),
        (b'{"text": ""}', "text: "),
        (b'{"text": "' + b"a" * 4001 + b'"}', "text: "),
    ],
)
def test_a_wrong_body_is_the_callers_fault(client: TestClient, body: bytes, named: str) -> None:
    response = client.post("/info/attention", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(named)

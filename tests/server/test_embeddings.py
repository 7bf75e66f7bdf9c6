"""Embeddings, asked by the clients of OpenAI, LangChain, Mistral and Ollama: they are the model's."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import ollama
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from mistralai.client import Mistral
from pydantic import SecretStr
from serving import PATIENCE, Running, serving

import mistral_portable as mp

TEXTS = ["Once upon a time", "One day", "Tom has a ball.", "A red ball", "The end", "Once"]  # more than there are lanes


@pytest.fixture(scope="module")
def embedding() -> Iterator[mp.Model]:
    with mp.load("tiny", backend="numba", max_lanes=4, embeddings=True) as model:
        yield model


@pytest.fixture(scope="module", params=["last", "mean"])
def running(request: pytest.FixtureRequest, embedding: mp.Model) -> Iterator[Running]:
    with serving(embedding, embeddings=request.param) as running:
        yield running


def _alone(running: Running) -> Any:
    pooling = running.service.settings.embeddings
    assert pooling is not None
    return running.service.model.embed(TEXTS, pooling=pooling)


def test_openai_s_client(running: Running) -> None:
    model = running.service.model
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", timeout=PATIENCE, max_retries=0) as client:
        encoded = client.embeddings.create(model="any", input=TEXTS)  # as base64, unless numbers are asked for
        numbers = client.embeddings.create(model="any", input=TEXTS, encoding_format="float")
        ids = client.embeddings.create(model="any", input=[model.encode(text) for text in TEXTS])
        one = client.embeddings.create(model="any", input=TEXTS[0], dimensions=model.config.hidden_size)
        wrong: list[dict[str, Any]] = [{"dimensions": 8}]
        wrong += [{"input": given} for given in ([], "", [[99999]], "red " * 40000)]
        for fields in wrong:
            body: Any = {"model": "any", "input": "x", **fields}
            with pytest.raises(openai.BadRequestError):
                client.embeddings.create(**body)
    for answer in (encoded, numbers, ids):
        np.testing.assert_array_equal(np.array([some.embedding for some in answer.data], np.float32), _alone(running))
        assert [some.index for some in answer.data] == list(range(len(TEXTS)))
        assert answer.usage.prompt_tokens == sum(len(model.encode(text)) for text in TEXTS)
    np.testing.assert_array_equal(np.array(one.data[0].embedding, np.float32), _alone(running)[0])


def test_langchain_s_client(running: Running) -> None:
    client = OpenAIEmbeddings(
        base_url=f"{running.url}/v1", api_key=SecretStr("any"), model="any", check_embedding_ctx_length=False
    )
    np.testing.assert_array_equal(np.array(client.embed_documents(TEXTS), np.float32), _alone(running))


def test_mistral_s_client(running: Running) -> None:
    with Mistral(api_key="any", server_url=running.url, timeout_ms=PATIENCE * 1000) as client:
        answer = client.embeddings.create(model="any", inputs=TEXTS)
    np.testing.assert_array_equal(np.array([some.embedding for some in answer.data], np.float32), _alone(running))


def test_ollama_s_client(running: Running) -> None:
    with ollama.Client(host=running.url, timeout=PATIENCE) as client:
        several = client.embed(model="any", input=TEXTS)
        np.testing.assert_array_equal(np.array(several.embeddings, np.float32), _alone(running))
        one = client.embeddings(model="any", prompt=TEXTS[0])
        np.testing.assert_array_equal(np.array(one.embedding, np.float32), _alone(running)[0])
        with pytest.raises(ollama.ResponseError, match="dimensions=8"):
            client.embed(model="any", input=TEXTS, dimensions=8)


def test_a_server_without_them_says_how_to_start_it(server: Running) -> None:
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": "x"}, timeout=PATIENCE)
    assert answer.status_code == 400
    assert "--embeddings" in answer.json()["error"]["message"]

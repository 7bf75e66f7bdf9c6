"""Tokens of texts and chats, and texts of tokens."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import CHAT, Running

import mistral_portable as mp


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.client() as http:
        yield http


@settings(max_examples=25)
@given(text=st.text())
def test_a_text_there_and_back(http: httpx.Client, model: mp.Model, text: str) -> None:
    answer = http.post("/tokenize", json={"content": text, "with_pieces": True}).json()
    ids = [one["id"] for one in answer["tokens"]]
    assert ids == model.tokenizer.encode(text, bos=False)
    assert answer["count"] == len(ids)
    pieces = [
        one["piece"].encode() if isinstance(one["piece"], str) else bytes(one["piece"]) for one in answer["tokens"]
    ]
    assert b"".join(pieces).decode(errors="replace").removeprefix(" ") == model.tokenizer.decode(ids)
    assert http.post("/detokenize", json={"tokens": ids}).json()["content"] == model.tokenizer.decode(ids)


def test_a_text_with_its_beginning(http: httpx.Client, model: mp.Model) -> None:
    for name in ("add_special", "add_special_tokens"):
        answer = http.post("/tokenize", json={"prompt": "Once", name: True}).json()
        assert answer["tokens"] == model.tokenizer.encode("Once")
        assert answer["max_model_len"] == model.max_context


def test_a_chat(http: httpx.Client, model: mp.Model) -> None:
    ids = model.tokenizer.chat(CHAT)
    assert http.post("/tokenize", json={"messages": CHAT}).json()["tokens"] == ids
    answer = http.post("/apply-template", json={"messages": CHAT}).json()
    assert answer["tokens"] == ids
    assert answer["prompt"] == f"<s>[INST] {CHAT[0]['content']}[/INST]"


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {}, "give one of the two"),
        ("/tokenize", {"content": "a", "messages": CHAT}, "give one of the two"),
        ("/detokenize", {"tokens": [10**9]}, "1000000000"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.0: .*'a'"),
        ("/apply-template", {"messages": []}, "at least one message"),
    ],
)
def test_wrong_requests(http: httpx.Client, path: str, body: Any, words: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert re.search(words, answer.json()["error"]["message"])

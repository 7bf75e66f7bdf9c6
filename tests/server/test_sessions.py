"""Sessions by name: what a server has read is found again by another one, from its folder."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving import CHAT, serving

import mistral_portable as mp

LONG = [{"role": "user", "content": "The sun was high and the day was warm. " * 20}]


@pytest.fixture
def http(model: mp.Model, tmp_path: Path) -> Iterator[httpx.Client]:
    with serving(model, sessions_dir=tmp_path) as running, running.client() as http:
        yield http


def test_a_session_outlives_its_server(http: httpx.Client, tmp_path: Path) -> None:
    asked = http.post("/v1/chat/completions", json={"messages": LONG, "max_tokens": 4}).json()["usage"]["prompt_tokens"]
    saved = http.post("/sessions/sun-1/save", json={"messages": LONG}).json()
    assert (saved["name"], saved["tokens"]) == ("sun-1", asked)
    assert http.get("/sessions").json() == {"sessions": [{"name": "sun-1", "bytes": saved["bytes"]}]}
    with (
        mp.load("tiny", backend="numba", max_lanes=2) as again,
        serving(again, sessions_dir=tmp_path) as running,
        running.client() as other,
    ):
        assert other.post("/sessions/sun-1/restore").json() == {"name": "sun-1", "tokens": asked}
        answer = other.post("/v1/chat/completions", json={"messages": LONG, "max_tokens": 4}).json()
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == asked - 1
        assert other.delete("/sessions/sun-1").json() == {"name": "sun-1", "deleted": True}
    assert http.get("/sessions").json() == {"sessions": []}
    assert http.post("/sessions/sun-1/restore").status_code == 404
    assert http.delete("/sessions/sun-1").status_code == 404


def test_without_a_body_the_last_text_is_saved(http: httpx.Client) -> None:
    usage = http.post("/v1/chat/completions", json={"messages": CHAT, "max_tokens": 4}).json()["usage"]
    saved = http.post("/sessions/last/save").json()
    assert usage["prompt_tokens"] <= saved["tokens"] <= usage["total_tokens"]


def test_what_was_never_read_cannot_be_saved(http: httpx.Client, tmp_path: Path) -> None:
    answer = http.post("/sessions/x/save", json={"prompt": [77, 78, 79]})
    assert answer.status_code == 400
    assert "nothing to save" in answer.json()["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_session(http: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "bad.session").write_bytes(b"\x00" * 99)
    assert http.post("/sessions/bad/restore").status_code == 400


@pytest.mark.parametrize("name", ["..", "a.b", "%2e%2e", "a%00", "ä", "a" * 65, "a%0a"])
def test_names_are_no_paths(http: httpx.Client, tmp_path: Path, name: str) -> None:
    for method, path in (("POST", f"/sessions/{name}/save"), ("POST", f"/sessions/{name}/restore")):
        answer = http.request(method, str(http.base_url) + path)
        assert answer.status_code in (400, 404)
    assert http.delete(f"/sessions/{name}x").status_code in (400, 404)
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_there_are_none(model: mp.Model) -> None:
    with serving(model) as running, running.client() as http:
        for method, path in (("GET", "/sessions"), ("POST", "/sessions/a/save"), ("DELETE", "/sessions/a")):
            answer = http.request(method, path)
            assert answer.status_code == 404
            assert "--sessions-dir" in answer.json()["error"]["message"]

"""Statements of docs/serving.md are true."""

import re
import shlex
from pathlib import Path

from serving import CHAT, serving

import mistral_portable as mp

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
ADDRESS = "http://127.0.0.1:8080"


def test_sessions(model: mp.Model, tmp_path: Path) -> None:
    """The command saves a session."""
    (command,) = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    program, url, _, header, _, data = shlex.split(command)
    assert program == "curl"
    with serving(model, sessions_dir=tmp_path) as running, running.client() as http:
        assert http.post("/v1/chat/completions", json={"messages": CHAT}).status_code == 200
        answer = http.post(url.removeprefix(ADDRESS), content=data, headers=dict([header.split(": ")]))
    assert answer.status_code == 200, answer.text
    assert (tmp_path / "tom.session").exists()


def test_all_endpoints_are_named(model: mp.Model) -> None:
    with serving(model) as running, running.client() as http:
        paths = http.get("/openapi.json").json()["paths"]
    for path in paths:
        assert re.sub("{.*?}", "NAME", path) in TEXT, path


def test_all_metrics_are_named(model: mp.Model) -> None:
    with serving(model) as running, running.client() as http:
        names = re.findall(
            r"^# TYPE mistral_portable_(\w+) (?:counter|gauge|histogram)$", http.get("/metrics").text, re.MULTILINE
        )
    assert names
    for name in names:
        assert name.removesuffix("_created") in TEXT, name

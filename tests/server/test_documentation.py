"""The examples of docs/serving.md work as they stand there."""

import re
import shlex
from pathlib import Path

import pytest
from serving import serving

import mistral_portable as mp

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
ADDRESS = "http://127.0.0.1:8080"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_clients(model: mp.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(model, sessions_dir=tmp_path) as running, running.client() as http:
        for command in blocks("sh"):
            program, url, _, header, _, data = shlex.split(command)
            assert program == "curl"
            answer = http.post(url.removeprefix(ADDRESS), content=data, headers=dict([header.split(": ")]))
            assert answer.status_code == 200, answer.text
        assert (tmp_path / "tom.session").exists()
        (program,) = blocks("python")
        assert ADDRESS in program
        exec(compile(program.replace(ADDRESS, running.url), "docs/serving.md", "exec"), {})
    whole, streamed = capsys.readouterr().out.splitlines()
    assert (
        whole
        == streamed
        == model.chat([{"role": "user", "content": "Tom has a red ball. What color is the ball?"}], temperature=0).text
    )


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

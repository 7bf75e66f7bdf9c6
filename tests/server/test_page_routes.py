"""The page's files: their headers, their digests, and that a wheel has them."""

import hashlib
import re
from importlib.resources import files
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from starlette.applications import Starlette
from starlette.testclient import TestClient

from mistral_portable.server.page import CONTENT_SECURITY_POLICY, page_routes

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "mistral_portable" / "server" / "page"
NAMES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=page_routes()))


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/page/vendor/purify.es.mjs", "/page/icon.svg"])
def test_every_answer_has_the_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"


def test_the_policy_allows_nothing_inline() -> None:
    rules = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "unsafe" not in CONTENT_SECURITY_POLICY


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/main.js", "text/javascript; charset=utf-8"),
        ("/page/vendor/purify.es.mjs", "text/javascript; charset=utf-8"),
        ("/page/style.css", "text/css; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
        ("/page/vendor/LICENSE.marked", "text/plain; charset=utf-8"),
    ],
)
def test_types(client: TestClient, path: str, media_type: str) -> None:
    assert client.get(path).headers["content-type"] == media_type


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_sent_as_it_is(client: TestClient, name: str) -> None:
    path = "/" if name == "index.html" else f"/page/{name}"
    assert client.get(path).content == (FOLDER / name).read_bytes()


def test_a_browser_that_has_a_file_is_told_so(client: TestClient) -> None:
    first = client.get("/page/main.js")
    again = client.get("/page/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get("/page/main.js", headers={"If-None-Match": '"another"'})
    assert (other.status_code, other.content) == (200, first.content)


@pytest.mark.parametrize(
    "name", ["../page.py", "%2e%2e/page.py", "..%2fpage.py", "/etc/passwd", "vendor", "vendor/", ""]
)
def test_nothing_else_is_sent(client: TestClient, name: str) -> None:
    assert client.get(f"/page/{name}").status_code == 404


def test_what_the_files_refer_to_is_there() -> None:
    """The page has no other host: all of its links and imports are files of the folder."""
    found = set()
    for name in NAMES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        if name == "index.html":
            found |= {(name, reference) for reference in re.findall(r'(?:src|href)="page/([^"]+)"', text)}
            assert not re.findall(r'(?:src|href)="(?!page/)', text)
        elif name.endswith(".js") and "/" not in name:
            found |= {(name, reference) for reference in re.findall(r'from "\./([^"]+)"', text)}
            assert not re.findall(r'from "(?!\./)', text)
    assert len(found) > 20
    assert not {(name, reference) for name, reference in found if reference not in NAMES}


def test_no_inline_scripts_and_styles() -> None:
    text = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", text)


def test_vendored_files_are_those_that_were_published() -> None:
    """Each file of others has a row with its digest, its version, which stands in the file, and a licence."""
    vendor = files("mistral_portable.server") / "page" / "vendor"
    table = (vendor / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (\w+) ([\d.]+), .* `(LICENSE\.\w+)` \| ([0-9a-f]{64}) \|$", table, re.MULTILINE)
    assert {name for name, *_ in rows} == {entry.name for entry in vendor.iterdir() if entry.name.endswith("js")}
    for name, _, version, licence, digest in rows:
        content = (vendor / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, name
        assert version.encode() in content[:400]
        assert "licen" in (vendor / licence).read_text(encoding="utf-8").lower()


def test_the_wheel_has_all_files() -> None:
    builder = WheelBuilder(str(ROOT))
    packed = {Path(file.distribution_path).as_posix() for file in builder.recurse_included_files()}
    assert {f"mistral_portable/server/page/{name}" for name in NAMES} <= packed

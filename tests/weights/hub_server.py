"""A Hugging Face hub on loopback with repositories in memory: the requests of `huggingface_hub` that tests need.

with Hub({"owner/name": {"config.json": b"{}"}}) as hub:
    subprocess.run(..., env={"HF_ENDPOINT": hub.url, ...})
    hub.requests  # [("GET", "/owner/name/resolve/<commit>/config.json", "bytes=100-"), ...]
    hub.uploads  # {"owner/name": {"config.json": b"{}"}}: what clients committed
"""

import json
import threading
from base64 import b64decode
from collections.abc import Mapping
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["COMMIT", "Hub", "hash_of"]

COMMIT = "c0ffee" + "0" * 34
"""The only commit of each repository, on the branch `main`."""


class Hub:
    """Serves repositories (name -> file name -> content) until the `with` block ends.

    Args:
        repositories: The files of each repository.
        gated: Names of repositories that answer 403.
        break_after: The first download of each file ends after this many bytes, as if the connection broke.
        hashes: Hashes to announce, by file name, in place of the real ones.
    """

    def __init__(
        self,
        repositories: Mapping[str, Mapping[str, bytes]],
        gated: tuple[str, ...] = (),
        break_after: int | None = None,
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        self.repositories = repositories
        self.gated = gated
        self.break_after = break_after
        self.hashes = hashes or {}
        self.broken: set[str] = set()
        self.requests: list[tuple[str, str, str | None]] = []
        self.uploads: dict[str, dict[str, bytes]] = {}
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()


def hash_of(file: str, data: bytes) -> str:
    """The hash that the hub has: SHA-256 for large files, git's SHA-1 for others."""
    large = file.endswith((".safetensors", ".gguf", ".pth"))
    return sha256(data).hexdigest() if large else sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the tests read `Hub.requests`."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        match path.strip("/").split("/", 5):
            case ["api", "models", owner, name, ("revision" | "tree") as what, revision]:
                if self._exists(f"{owner}/{name}", revision):
                    self._listing(f"{owner}/{name}", what)
            case [owner, name, "resolve", revision, *file]:
                if self._exists(f"{owner}/{name}", revision):
                    self._file(f"{owner}/{name}", "/".join(file))
            case _:
                self._answer(404, b"{}", {})

    def do_POST(self) -> None:
        """Create a repository, answer how files are uploaded, and accept a commit of small files."""
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.requests.append((self.command, path, None))
        if self.headers.get("Authorization") != "Bearer secret":
            self._answer(401, b"{}", {})
            return
        answer: dict[str, Any]
        match path.strip("/").split("/"):
            case ["api", "repos", "create"]:
                name = "/".join(filter(None, [json.loads(body).get("organization"), json.loads(body)["name"]]))
                self.hub.uploads.setdefault(name, {})
                answer = {"url": f"{self.hub.url}/{name}", "name": name}
            case ["api", "models", *_, "preupload", _]:
                files = [file["path"] for file in json.loads(body)["files"]]
                answer = {"files": [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]}
            case ["api", "models", *repository, "commit", _]:
                name = "/".join(repository)
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        self.hub.uploads[name][line["value"]["path"]] = b64decode(line["value"]["content"])
                answer = {"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
            case _:
                answer = {}
        self._answer(200, json.dumps(answer).encode(), {})

    def _exists(self, repository: str, revision: str) -> bool:
        if repository in self.hub.gated:
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif repository not in self.hub.repositories:
            self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def _listing(self, repository: str, what: str) -> None:
        files = self.hub.repositories[repository]
        tree = [{"type": "file", "path": f, "size": len(d), "oid": hash_of(f, d)} for f, d in files.items()]
        info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        self._answer(200, json.dumps(tree if what == "tree" else info).encode(), {})

    def _file(self, repository: str, file: str) -> None:
        data = self.hub.repositories[repository].get(file)
        if data is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {
            "ETag": f'"{self.hub.hashes.get(file, hash_of(file, data))}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        span = self.headers.get("Range")
        if span is None:
            self._answer(200, data, headers)
            return
        start = int(span.removeprefix("bytes=").rstrip("-"))
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(206, data[start:], headers)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.hub.break_after
        if limit is not None and "resolve" in self.path and len(body) > limit and self.path not in self.hub.broken:
            self.hub.broken.add(self.path)
            self.wfile.write(body[:limit])
            self.close_connection = True
            return
        self.wfile.write(body)

"""A hub on loopback: what huggingface_hub asks of one, for repositories made by a test.

It serves listings, files with their commit and ETag, ranges, and the refusals that the library
knows by X-Error-Code. It notes what was asked.
"""

import hashlib
import json
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@cache
def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@dataclass
class Repository:
    files: dict[str, bytes]
    token: str | None = None  # without it the repository is not there
    gated: bool = False
    branch: str = "main"

    @property
    def commit(self) -> str:
        return _sha1(repr([(name, _sha1(data)) for name, data in self.files.items()]).encode())


@dataclass
class Hub:
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    cut_after: int | None = None  # the next file's connection breaks after so many bytes

    def __enter__(self) -> "Hub":
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fetched(self) -> list[str]:
        """The files whose bytes were asked for, in order of name."""
        paths = {path for method, path, _ in self.asked if method == "GET" and "/resolve/" in path}
        return sorted(re.sub(r".*/resolve/[^/]+/", "", path) for path in paths)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = listing or file
        repository = self.hub.repositories.get(found[1]) if found else None
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository.token not in (None, token):
            return self._refuse(401, "RepoNotFound")
        revision = listing[3] or repository.branch if listing else file[2]
        if revision not in (repository.branch, repository.commit):
            return self._refuse(404, "RevisionNotFound")
        if repository.gated and file:
            return self._refuse(403, "GatedRepo")
        if listing:
            return self._send_json(_listing(found[1], repository, tree=listing[2] == "tree"))
        data = repository.files.get(file[3])
        if data is None:
            return self._refuse(404, "EntryNotFound")
        return self._send_file(repository, data)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0"})

    def _send_json(self, value: object) -> None:
        data = json.dumps(value).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        self._send(200, headers, data)

    def _send_file(self, repository: Repository, data: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        last = min(int(wanted[2] or len(data)), len(data) - 1) if wanted else len(data) - 1
        headers = {
            "X-Repo-Commit": repository.commit,
            "ETag": f'"{_sha1(data)}"',
            "Accept-Ranges": "bytes",
            "Content-Length": str(last + 1 - first),
        }
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(206 if wanted else 200, headers, data[first : last + 1])

    def _send(self, status: int, headers: dict[str, str], data: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut, in_file = self.hub.cut_after, "ETag" in headers
        if cut is not None and in_file and len(data) > cut:
            self.hub.cut_after = None
            data = data[:cut]
            self.close_connection = True
        with suppress(ConnectionError):
            self.wfile.write(data)


def _listing(name: str, repository: Repository, tree: bool) -> object:
    if tree:
        return [
            {"type": "file", "path": path, "size": len(data), "oid": _sha1(data)}
            for path, data in repository.files.items()
        ]
    siblings = [{"rfilename": path} for path in repository.files]
    about = {"private": False, "tags": [], "downloads": 0, "likes": 0, "gated": False}
    return {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings, **about}

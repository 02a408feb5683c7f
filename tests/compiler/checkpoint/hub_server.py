"""A Hugging Face Hub on the loopback interface, faithful enough for the real client.

Model info and tree API (paged), `resolve` with its headers (small files by a relative redirect), large files behind a redirect to a second server that
plays the CDN (signed path, range requests, no credentials), the Hub's error codes, and a CDN that can hang up half-way.

    with HubServer({"acme/model": Repo(files={"config.json": b"{}"})}) as hub:
        ...                             # point HF_ENDPOINT at hub.url
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

PAGE = 3
"""Entries in one page of the tree listing; small, so that paging is exercised."""


@dataclass(frozen=True, kw_only=True)
class Repo:
    """``files`` of the main branch; ``branches`` maps further refs to their own files.

    Files named in ``large``, and all safetensors, are served from the CDN. ``private`` and ``gated`` repositories
    need one of ``tokens``.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    branches: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    large: frozenset[str] = frozenset()
    private: bool = False
    gated: bool = False
    tokens: frozenset[str] = frozenset()

    def revisions(self) -> dict[str, Mapping[str, bytes]]:
        """Branch name or commit hash → files."""
        named = {"main": self.files, **self.branches}
        return named | {commit(files): files for files in named.values()}

    def is_large(self, path: str) -> bool:
        return path in self.large or path.endswith(".safetensors")


@dataclass(frozen=True)
class Seen:
    """One request that a server got."""

    method: str
    path: str
    headers: dict[str, str]


def commit(files: Mapping[str, bytes]) -> str:
    """The commit hash of these files: 40 hex digits that change with the content."""
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name])
    return digest.hexdigest()


class HubServer:
    """The Hub at ``url`` and its CDN, on two ports.

    ``cuts[path]`` lists after how many bytes the next downloads of that large file hang up; ``status`` makes the Hub
    answer every request with that HTTP status.
    """

    def __init__(self, repos: Mapping[str, Repo]) -> None:
        self.repos = dict(repos)
        self.cuts: dict[str, list[int]] = {}
        self.status: int | None = None
        self.hub_requests: list[Seen] = []
        self.cdn_requests: list[Seen] = []
        self._hub = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(_hub, self.hub_requests))
        self._cdn = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(_cdn, self.cdn_requests))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._hub.server_port}"

    @property
    def cdn_url(self) -> str:
        return f"http://127.0.0.1:{self._cdn.server_port}"

    def __enter__(self) -> "HubServer":  # noqa: PYI034 (Self came with Python 3.11)
        for server in (self._hub, self._cdn):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close both ports; later connections are refused."""
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()

    def _handler(self, answer: Any, seen: list[Seen]) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers = {key.lower(): value for key, value in self.headers.items()}
                seen.append(Seen(self.command, self.path, headers))
                answer(owner, self)

            do_HEAD = do_GET  # noqa: N815 (http.server looks it up by this name)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _send(
    http: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str], cut: int | None = None
) -> None:
    http.send_response(status)
    for key, value in {"Content-Length": str(len(body)), **headers}.items():
        http.send_header(key, value)
    http.end_headers()
    if http.command == "HEAD":
        return
    http.wfile.write(body if cut is None else body[:cut])
    if cut is not None:
        http.wfile.flush()
        http.close_connection = True


def _refuse(http: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    _send(
        http,
        status,
        body,
        {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"},
    )


def _json(http: BaseHTTPRequestHandler, value: object, headers: Mapping[str, str] | None = None) -> None:
    _send(http, 200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def _token(http: BaseHTTPRequestHandler) -> str | None:
    header = http.headers.get("Authorization", "")
    return header.removeprefix("Bearer ") or None


def _hub(hub: HubServer, http: BaseHTTPRequestHandler) -> None:
    if hub.status is not None:
        return _send(http, hub.status, b"down for maintenance", {})
    url = urlsplit(http.path)
    parts = [unquote(part) for part in url.path.strip("/").split("/")]
    api = parts[:2] == ["api", "models"]
    parts = parts[2:] if api else parts
    name = "/".join(parts[:2])
    repo = hub.repos.get(name)
    token = _token(http)
    if token is not None and not token.startswith("hf_"):
        return _refuse(http, 401, "", "Invalid credentials in Authorization header")
    if repo is None or (repo.private and token not in repo.tokens):
        return _refuse(http, 404 if token else 401, "RepoNotFound", "Repository not found")
    if api and parts[2:3] == ["resolve-cache"]:
        return _small(http, repo, parts[3], "/".join(parts[4:]))
    if api:
        return _api(hub, http, name, repo, parts[2:], parse_qs(url.query))
    if repo.gated and token not in repo.tokens:
        return _refuse(http, 403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
    return _resolve(hub, http, name, repo, parts[2:])


def _api(
    hub: HubServer,
    http: BaseHTTPRequestHandler,
    name: str,
    repo: Repo,
    rest: list[str],
    query: dict[str, list[str]],
) -> None:
    revision = rest[1] if len(rest) > 1 else "main"
    files = repo.revisions().get(revision)
    if files is None:
        return _refuse(http, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
    if rest[:1] != ["tree"]:
        siblings = [{"rfilename": path} for path in files]
        return _json(http, {"id": name, "modelId": name, "sha": commit(files), "siblings": siblings})
    start = int(query.get("cursor", ["0"])[0])
    page = [_entry(repo, path, files[path]) for path in sorted(files)[start : start + PAGE]]
    headers = {}
    if start + PAGE < len(files):
        again = f"{hub.url}/api/models/{name}/tree/{quote(revision, safe='')}"
        headers["Link"] = f'<{again}?recursive=true&cursor={start + PAGE}>; rel="next"'
    return _json(http, page, headers)


def _entry(repo: Repo, path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
    if repo.is_large(path):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _blob(content: bytes) -> str:
    """git's hash of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _small(http: BaseHTTPRequestHandler, repo: Repo, revision: str, path: str) -> None:
    files = repo.revisions()[revision]
    headers = {"X-Repo-Commit": revision, "ETag": f'"{_blob(files[path])}"', "Accept-Ranges": "bytes"}
    _send(http, 200, files[path], headers)


def _resolve(hub: HubServer, http: BaseHTTPRequestHandler, name: str, repo: Repo, rest: list[str]) -> None:
    if len(rest) < 3 or rest[0] != "resolve":
        return _refuse(http, 404, "", "Not found")
    files = repo.revisions().get(rest[1])
    if files is None:
        return _refuse(http, 404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
    path = "/".join(rest[2:])
    headers = {"X-Repo-Commit": commit(files)}
    if path not in files:
        return _refuse(http, 404, "EntryNotFound", "Entry not found")
    content = files[path]
    if not repo.is_large(path):
        cached = f"/api/models/{name}/resolve-cache/{commit(files)}/{quote(path)}"
        return _send(http, 307, b"", {**headers, "ETag": f'"{_blob(content)}"', "Location": cached})
    oid = hashlib.sha256(content).hexdigest()
    location = f"{hub.cdn_url}/{oid}/{quote(path, safe='')}?Signature=s1gned"
    linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content)), "Location": location}
    return _send(http, 302, b"", {**headers, **linked})


def _cdn(hub: HubServer, http: BaseHTTPRequestHandler) -> None:
    url = urlsplit(http.path)
    if parse_qs(url.query).get("Signature") != ["s1gned"]:
        return _send(http, 403, b"AccessDenied", {})
    oid, path = (unquote(part) for part in url.path.strip("/").split("/"))
    content = next(body for body in _contents(hub) if hashlib.sha256(body).hexdigest() == oid)
    planned = hub.cuts.get(path, [])
    cut = planned.pop(0) if planned and http.command == "GET" else None
    headers = {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
    start = int(http.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return _send(http, 206 if start else 200, content[start:], headers, cut)


def _contents(hub: HubServer) -> Iterator[bytes]:
    for repo in hub.repos.values():
        for files in repo.revisions().values():
            yield from files.values()


@contextmanager
def pointed_at(hub: HubServer, cache: Any, monkeypatch: Any) -> Iterator[HubServer]:
    """huggingface_hub in this process talks to ``hub`` and caches in the folder ``cache``.

    The library reads its environment once, at import; these are the values that it read.
    """
    from huggingface_hub import constants

    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
        yield hub

"""A hub in a thread: the few endpoints that `huggingface_hub` asks to look, to download and to commit."""

import base64
import hashlib
import http.server
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_S3CRET"
LARGE = (".onnx", ".npz")


@dataclass
class Stub:
    """What is stored, what was asked, and how it misbehaves.

    Attributes:
        commits: repository -> commit -> file name -> bytes.
        branches: repository -> branch -> commit.
        objects: large files by SHA-256, as uploaded.
        asked: method and path of each request.
        told_to: (host, authorization) of requests for large files.
        cut_after: bytes after which a large file's connection breaks; once for each entry.
        busy: statuses that requests for large files get in place of an answer; once for each entry.
        from_start: how many requests for the rest of a large file get the whole file.
        hold_after: bytes after which a large file stalls, until `released`.
        extra: bytes appended to each large file that is sent.
        refuse: paths that match get 500.
        sent: bytes of large files that went out.
    """

    url: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    told_to: list[tuple[str, str | None]] = field(default_factory=list)
    cut_after: list[int] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)
    from_start: int = 0
    hold_after: int | None = None
    released: threading.Event = field(default_factory=threading.Event)
    extra: bytes = b""
    refuse: str | None = None
    ignored: tuple[str, ...] = ()
    sent: int = 0

    def commit(self, name: str, branch: str, files: dict[str, bytes]) -> str:
        """Put files on a branch."""
        whole = repr(sorted((key, hashlib.sha256(data).hexdigest()) for key, data in files.items()))
        commit = hashlib.sha1(f"{whole}{len(self.commits.get(name, {}))}".encode()).hexdigest()
        self.commits.setdefault(name, {})[commit] = files
        self.branches.setdefault(name, {})[branch] = commit
        return commit

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """What is on a branch."""
        return self.commits[name][self.branches[name][branch]]

    def count(self, method: str, pattern: str) -> int:
        """How many requests were like that."""
        return sum(1 for each, path in self.asked if each == method and re.search(pattern, path))


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients are killed here on purpose; what they leave is no error of the stub's."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def hub() -> Iterator[Stub]:
    """A hub that listens until the end of the block."""
    stub = Stub()
    handler = type("Bound", (_Handler,), {"stub": stub})
    with _Server(("127.0.0.1", 0), handler) as server:
        stub.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield stub
        finally:
            server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    stub: Stub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self._begin()
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], unquote(match[2] or "main"))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], unquote(match[2]), unquote(match[3]))
        elif match := re.fullmatch(r"/cdn/(\w+)", path):
            self._cdn(match[1])
        else:
            self._answer(404)

    def do_POST(self) -> None:
        path = self._begin()
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._answer(401)
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            branches = self.stub.branches[match[1]]
            branches[unquote(match[2])] = branches["main"]
            self._answer(200)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/.+", path):
            self._preupload(json.loads(body))
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            self._batch(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self._commit(match[1], unquote(match[2]), [json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404)

    def do_PUT(self) -> None:
        path = self._begin()
        data = self.rfile.read(int(self.headers["content-length"]))
        if self.stub.refuse and re.search(self.stub.refuse, path):
            self._answer(400)
            return
        self.stub.objects[path.rpartition("/")[2]] = data
        self._answer(200)

    def _begin(self) -> str:
        path = urlsplit(self.path).path
        self.stub.asked.append((self.command, path))
        return path

    def _answer(self, status: int, value: Any = None, **headers: str) -> None:
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _visible(self, name: str) -> bool:
        hidden = self.stub.private.get(name) and self.headers.get("authorization") != f"Bearer {TOKEN}"
        return name in self.stub.commits and not hidden

    def _info(self, name: str, revision: str) -> None:
        commit = self.stub.branches.get(name, {}).get(revision, revision)
        if not self._visible(name):
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif commit not in self.stub.commits[name]:
            self._answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        else:
            files = [_described(key, data) for key, data in self.stub.commits[name][commit].items()]
            self._answer(200, {"id": name, "modelId": name, "sha": commit, "siblings": files})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.stub.commits:
            self._answer(409, {"error": "You already created this model repo", "url": f"{self.stub.url}/{name}"})
            return
        self.stub.private[name] = asked.get("private", asked.get("visibility") == "private")  # version 0, version 1
        self.stub.commit(name, "main", {".gitattributes": b"*.onnx filter=lfs\n"})
        self._answer(200, {"url": f"{self.stub.url}/{name}"})

    def _preupload(self, asked: dict[str, Any]) -> None:
        modes = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular",
                "shouldIgnore": each["path"] in self.stub.ignored,
            }
            for each in asked["files"]
        ]
        self._answer(200, {"files": modes})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for each in asked["objects"]:
            there = each["oid"] in self.stub.objects
            action = {} if there else {"actions": {"upload": {"href": f"{self.stub.url}/upload/{each['oid']}"}}}
            objects.append({"oid": each["oid"], "size": each["size"], **action})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.stub.files(name, branch))
        if lines[0]["value"]["parentCommit"] != self.stub.branches[name][branch]:
            self._answer(412, {"error": "A commit has happened since"})
            return
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.stub.commit(name, branch, files)
        self._answer(200, {"commitUrl": f"{self.stub.url}/{name}/commit/{commit}", "commitOid": commit})

    def _resolve(self, name: str, commit: str, file: str) -> None:
        data = self.stub.commits.get(name, {}).get(commit, {}).get(file)
        if not self._visible(name) or data is None:
            self._answer(404, X_Error_Code="EntryNotFound")
        elif file.endswith(LARGE):
            sha256 = hashlib.sha256(data).hexdigest()
            self.stub.objects[sha256] = data
            # Another host, as the hub's storage is.
            elsewhere = self.stub.url.replace("127.0.0.1", "localhost")
            self._answer(302, Location=f"{elsewhere}/cdn/{sha256}?Signature=S3CRET")
        else:
            self._send(data)

    def _cdn(self, sha256: str) -> None:
        self.stub.told_to.append((self.headers["host"].partition(":")[0], self.headers.get("authorization")))
        if self.stub.refuse and re.search(self.stub.refuse, self.path):
            self._answer(403)
            return
        if self.stub.busy:
            self._answer(self.stub.busy.pop(0))
            return
        self._send(self.stub.objects[sha256] + self.stub.extra, large=True)

    def _send(self, data: bytes, large: bool = False) -> None:
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range") or "")
        if first and large and self.stub.from_start:
            self.stub.from_start, first = self.stub.from_start - 1, None
        start = int(first[1]) if first else 0
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        rest = data[start:]
        if large:
            if self.stub.cut_after and len(rest) > self.stub.cut_after[0]:
                rest = rest[: self.stub.cut_after.pop(0)]
                self.close_connection = True
            self.stub.sent += len(rest)
        hold = self.stub.hold_after if large else None
        with suppress(ConnectionError):  # who had enough hangs up
            if hold is not None and len(rest) > hold:
                self.wfile.write(rest[:hold])
                self.stub.released.wait(60)
                rest = rest[hold:]
            self.wfile.write(rest)


def _described(name: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    large = {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}}
    return {"rfilename": name, "size": len(data), "blobId": blob, **(large if name.endswith(LARGE) else {})}

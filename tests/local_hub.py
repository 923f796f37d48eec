"""A server that speaks the part of the Hugging Face hub's API that huggingface_hub uses, to download and to upload."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "secret"
COMMIT = "1234567890" * 4
WEIGHTS = (".safetensors", ".gguf")
LICENSES = ("mit", "apache-2.0", "cc-by-4.0", "other")


class Repository:
    """A model, and what is wrong with it."""

    def __init__(self, files: dict[str, bytes], commit: str = COMMIT) -> None:
        self.files = dict(files)
        self.commit = commit
        self.served: dict[str, bytes] = {}  # instead of the right content
        self.sizes: dict[str, int] = {}  # listed instead of the right ones
        self.missing: set[str] = set()
        self.gated = self.private = False

    def info(self, name: str) -> dict[str, Any]:
        siblings = []
        for file, data in self.files.items():
            sibling: dict[str, Any] = {"rfilename": file, "size": self.sizes.get(file, len(data))}
            if file.endswith(WEIGHTS):
                sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}
            siblings.append(sibling)
        license_ = re.search(rb'^license: "?([\w.-]+)"?$', self.files.get("README.md", b""), re.MULTILINE)
        card = {"license": license_[1].decode()} if license_ else {}
        return {"id": name, "modelId": name, "sha": self.commit, "siblings": siblings, "cardData": card,
                "private": self.private}  # fmt: skip


class LocalHub:
    """The state of the server."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # large files by their sha256, or another name
        self.requests: list[tuple[str, str, str | None, str | None]] = []  # method, path, range, authorization
        self.owners = ["owner", "lab"]
        self.redirect = ""  # where weights are
        self.cut_after: int | None = None  # bytes of weights, then the connection breaks
        self.refused: dict[str, tuple[int, str]] = {}  # path -> status and message


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    @property
    def hub(self) -> LocalHub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log(self) -> bool:
        """Note the request; answer it if it is to be refused."""
        self.hub.requests.append(
            (self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        for path, (status, message) in self.hub.refused.items():
            if path in self.path:
                self.answer(status, {"X-Error-Message": message}, json.dumps({"error": message}).encode())
                return True
        return False

    @property
    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.log():
            return
        path = self.path.partition("?")[0]
        if path == "/api/whoami-v2":
            user = {"type": "user", "name": self.hub.owners[0], "orgs": [{"name": one} for one in self.hub.owners[1:]]}
            self.answer(*((200, {}, json.dumps(user).encode()) if self.has_token else (401, {})))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.model_info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self.file(self.hub.repositories[found[1]], found[2])
        elif (data := self.hub.objects.get(path.rpartition("/")[2])) is not None:
            self.answer(200, {}, data)
        else:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})

    def model_info(self, name: str, revision: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.has_token):
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", repository.commit):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            self.answer(200, {}, json.dumps(repository.info(name)).encode())

    def file(self, repository: Repository, name: str) -> None:
        if repository.gated and not self.has_token:
            self.answer(401, {"X-Error-Code": "GatedRepo"})
            return
        if name not in repository.files or name in repository.missing:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})
            return
        data = repository.files[name]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                   "Accept-Ranges": "bytes", "Content-Disposition": f'inline; filename="{name}";'}  # fmt: skip
        is_weights = name.endswith(WEIGHTS)
        if is_weights and self.hub.redirect:
            self.answer(302, headers | {"Location": f"{self.hub.redirect}/{name}", "X-Linked-Size": str(len(data))})
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        data = repository.served.get(name, data)[start:]
        if start:
            headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{start + len(data)}"
        cut = self.hub.cut_after if is_weights and self.command == "GET" else None
        self.answer(206 if start else 200, headers, data, cut)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.log():
            return
        path = self.path.partition("?")[0]
        if not self.has_token:
            self.answer(401, {})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.validate(json.loads(body)["content"])
        elif re.fullmatch(r"/api/models/.+/preupload/main", path):
            files = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(WEIGHTS) else "regular",
                 "shouldIgnore": False, "oid": None}
                for one in json.loads(body)["files"]
            ]  # fmt: skip
            self.answer(200, {}, json.dumps({"files": files}).encode())
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self.answer(200, {}, json.dumps({"transfer": "basic", "objects": objects}).encode())
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self.commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404, {})

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.log():
            self.hub.objects[self.path.rpartition("/")[2]] = data
            self.answer(200, {})

    def create(self, body: dict[str, Any]) -> None:
        name = f"{body['organization']}/{body['name']}"
        if body["organization"] not in self.hub.owners:
            message = f'You don\'t have the rights to create a model under the namespace "{body["organization"]}"'
            self.answer(403, {"X-Error-Message": message}, json.dumps({"error": message}).encode())
            return
        if name in self.hub.repositories:
            self.answer(409, {"X-Error-Message": "You already created this model repo"})
            return
        self.hub.repositories[name] = repository = Repository({".gitattributes": b""})
        repository.private = body.get("private") or body.get("visibility") == "private"
        self.answer(200, {}, json.dumps({"url": f"{self.hub.endpoint}/{name}", "name": name}).encode())

    def validate(self, card: str) -> None:
        license_ = re.search(r'^license: "?(.+?)"?$', card, re.MULTILINE)
        ok = license_ is None or license_[1] in LICENSES
        errors = [] if ok else [{"message": f'"license" must be one of [{", ".join(LICENSES)}]'}]
        self.answer(200 if ok else 400, {}, json.dumps({"errors": errors, "warnings": []}).encode())

    def commit(self, name: str, operations: list[dict[str, Any]]) -> None:
        repository = self.hub.repositories[name]
        [parent] = [operation["value"].get("parentCommit") for operation in operations if operation["key"] == "header"]
        if parent not in (None, repository.commit):
            self.answer(412, {"X-Error-Message": "A commit has happened since. Please refresh and try again."})
            return
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                data = self.hub.objects[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                repository.files[value["path"]] = data
            elif operation["key"] == "deletedFile":
                del repository.files[value["path"]]
        repository.commit = hashlib.sha1(repr(sorted(repository.files.items())).encode()).hexdigest()
        url = f"{self.hub.endpoint}/{name}/commit/{repository.commit}"
        self.answer(200, {}, json.dumps({"success": True, "commitOid": repository.commit, "commitUrl": url}).encode())

    def answer(self, status: int, headers: dict[str, str], data: bytes = b"", cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut])
        self.close_connection = True


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = server.hub = LocalHub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()

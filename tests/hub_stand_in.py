"""A stand-in for the Hub's HTTP interface: what huggingface_hub needs to create, fill and read a repository."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REFUSING = "refuses"  # USER whose repositories are answered with the status in their name
TOKEN_OWNER = "me"  # the owner of repositories that are created without one
ERRORS = {404: "RepoNotFound"}


class StandIn(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        repositories: Commits by repository name; each is its id and all files by name.
        private: Names of repositories that are visible only with the token.
        objects: Contents uploaded by the LFS protocol, by their SHA-256.
        requests: Method and path of every request.
        token: The token that may write.
    """

    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """A commit's id and files; ``main`` is the last commit."""
        commits = self.repositories.get(repo, [])
        if revision == "main":
            return commits[-1] if commits else None
        return next((commit for commit in commits if commit[0] == revision), None)


@contextmanager
def stand_in(token: str) -> Iterator[StandIn]:
    """A Hub that answers until the block ends."""
    server = StandIn(token)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        status = self.refusal_status(parts)
        if status is not None:
            self.answer({"error": "no"}, status, {"X-Error-Code": ERRORS.get(status, "")})
        elif self.command in ("GET", "HEAD"):
            self.resolve(parts)
        else:
            self.change(parts)

    do_GET = do_HEAD = do_POST = handle_request

    @property
    def is_authorized(self) -> bool:
        """Whether the request carries the token."""
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def refusal_status(self, parts: list[str]) -> int | None:
        """The status with which to refuse the request, or None."""
        if parts == ["api", "repos", "create"]:
            request = json.loads(self.body)
            owner, name = request["organization"] or TOKEN_OWNER, request["name"]
        else:
            owner, name = parts[2:4] if parts[:2] == ["api", "models"] else parts[:2]
        name = name.removesuffix(".git")
        if owner == REFUSING:
            return int(name)
        if (self.command in ("POST", "PUT") and not self.is_authorized) or (
            f"{owner}/{name}" in self.server.private and not self.is_authorized
        ):
            return 401
        return None

    def resolve(self, parts: list[str]) -> None:
        """GET or HEAD of a file: USER/NAME/resolve/REVISION/FILE."""
        revision = self.server.files("/".join(parts[:2]), parts[3]) if parts[2:3] == ["resolve"] else None
        name = "/".join(parts[4:])
        if revision is None or name not in revision[1]:
            code = (
                "RepoNotFound" if "/".join(parts[:2]) not in self.server.repositories else "RevisionNotFound"
            )
            self.answer({}, 404, {"X-Error-Code": code if revision is None else "EntryNotFound"})
            return
        commit, content = revision[0], revision[1][name]
        etag = hashlib.sha256(content).hexdigest()
        self.answer(
            content, 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        )

    def change(self, parts: list[str]) -> None:
        """POST and PUT: creating a repository, and the steps of an upload."""
        server = self.server
        if parts == ["api", "repos", "create"]:
            request = json.loads(self.body)
            repo = f"{request['organization'] or TOKEN_OWNER}/{request['name']}"
            if request.get("private") or request.get("visibility") == "private":
                server.private.add(repo)
            status = 409 if repo in server.repositories else 200
            server.repositories.setdefault(repo, [])
            self.answer({"url": f"{server.endpoint}/{repo}"}, status)
        elif parts == ["api", "validate-yaml"]:
            text = json.loads(self.body)["content"]
            errors = [] if text.startswith("---\n") else [{"message": "empty or missing yaml metadata"}]
            self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)
        elif parts[4:5] == ["preupload"]:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            self.answer({"files": files})
        elif parts[-2:] == ["objects", "batch"]:
            objects = [
                {**lfs_object, "actions": {"upload": {"href": f"{server.endpoint}/lfs/{lfs_object['oid']}"}}}
                for lfs_object in json.loads(self.body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif parts[4:5] == ["commit"]:
            self.commit("/".join(parts[2:4]))
        else:
            self.answer({}, 404)

    def commit(self, repo: str) -> None:
        """Add a commit to a repository."""
        commits = self.server.repositories[repo]
        files = dict(commits[-1][1]) if commits else {}
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        number = hashlib.sha1(f"{repo} {len(commits)}".encode()).hexdigest()
        commits.append((number, files))
        self.answer({"commitUrl": f"{self.server.endpoint}/{repo}/commit/{number}", "commitOid": number})

    def do_PUT(self) -> None:
        """A large file's content, as LFS sends it: without a token, since the address is the permission."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        number = self.path.rpartition("/")[2]
        is_intact = hashlib.sha256(content).hexdigest() == number
        self.server.objects[number] = content
        self.server.requests.append(("PUT", self.path))
        self.answer({}, 200 if is_intact else 400)

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send bytes, or anything else as JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(
            "Content-Type", "application/octet-stream" if content is body else "application/json"
        )
        for key, value in (headers or {}).items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

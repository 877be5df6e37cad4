r"""A small Hub on this machine: repositories in memory, spoken to over HTTP as huggingface_hub speaks to the real one.

Covers creating repositories and branches, committing (inline and by LFS), pull requests, listing, and resolving files
with ETag and Range. `failures` makes chosen requests fail, and `cut_after` breaks downloads off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse


Files = dict[str, bytes]


class Repository:
    def __init__(self):
        self.branches: dict[str, str] = {}
        self.commits: dict[str, Files] = {}
        self.pull_requests = 0
        self.commit("main", {})

    def commit(self, branch: str, files: Files) -> str:
        sha = hashlib.sha1(f"{branch}{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        revision = unquote(revision)
        return revision if revision in self.commits else self.branches.get(revision)


class LocalHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, lfs_suffixes: tuple[str, ...] = ()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.lfs_suffixes = lfs_suffixes
        self.failures: dict[str, int] = {}
        self.cut_after: int | None = None
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo: str, revision: str = "main") -> Files:
        repository = self.repositories[repo]
        return repository.commits[repository.branches[revision]]


@contextmanager
def local_hub(**options) -> Iterator[LocalHub]:
    hub = LocalHub(**options)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalHub

    ROUTES = (
        ("POST", r"/api/repos/create", "create_repo"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/models/(?P<repo>.+)/branch/(?P<branch>[^/]+)", "create_branch"),
        ("POST", r"/api/models/(?P<repo>.+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>.+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/(?P<repo>.+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "lfs_upload"),
        ("POST", r"/lfs/verify", "lfs_verify"),
        ("GET", r"/api/models/(?P<repo>.+)/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", "tree"),
        ("GET", r"/api/models/(?P<repo>.+)/revision/(?P<revision>[^/]+)", "info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)", "info"),
        ("HEAD", r"/(?P<repo>.+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", r"/(?P<repo>.+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def dispatch(self):
        url = urlparse(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {url.path}")
        for method, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, url.path)
            if method == self.command and match:
                if name in self.server.failures:
                    return self.reply({"error": "Refused by the test"}, self.server.failures[name])
                return getattr(self, name)(**match.groupdict())
        return self.missing("EntryNotFound")

    do_GET = do_POST = do_PUT = do_HEAD = dispatch  # noqa: N815

    def log_message(self, *args):
        pass

    def reply(self, content: dict | list | None = None, status: int = 200, **headers: str):
        body = json.dumps(content if content is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str, commit: str | None = None):
        headers = {"X_Error_Code": code, "X_Error_Message": f"{code}: {self.path}"}
        if commit:
            headers["X_Repo_Commit"] = commit
        self.reply({"error": code}, 404, **headers)

    def commit_of(self, repo: str, revision: str | None) -> str | None:
        """Commit of a revision, or None after an error was sent."""
        repository = self.server.repositories.get(repo)
        if repository is None:
            self.missing("RepoNotFound")
            return None
        commit = repository.resolve(revision or "main")
        if commit is None:
            self.missing("RevisionNotFound")
        return commit

    def create_repo(self):
        request = json.loads(self.body)
        owner = request.get("organization") or "tester"
        repo = f"{owner}/{request['name']}"
        answer = {"url": f"{self.server.endpoint}/{repo}", "name": repo, "id": repo}
        if repo in self.server.repositories:
            return self.reply({"error": "You already created this model repo", **answer}, 409)
        self.server.repositories[repo] = Repository()
        if request.get("private") or request.get("visibility") == "private":
            self.server.private.add(repo)
        return self.reply(answer)

    def whoami(self):
        self.reply({"name": "tester", "type": "user", "orgs": []})

    def validate_yaml(self):
        self.reply({"errors": [], "warnings": []})

    def create_branch(self, repo: str, branch: str):
        repository = self.server.repositories[repo]
        if branch in repository.branches:
            return self.reply({"error": f"Reference already exists: {branch}"}, 409)
        repository.branches[branch] = repository.branches["main"]
        return self.reply()

    def preupload(self, repo: str, revision: str):
        files = json.loads(self.body)["files"]
        modes = ("lfs" if file["path"].endswith(self.server.lfs_suffixes or ("\0",)) else "regular" for file in files)
        answers = [
            {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
            for file, mode in zip(files, modes, strict=True)
        ]
        self.reply({"files": answers})

    def commit(self, repo: str, revision: str):
        base = self.commit_of(repo, revision)
        if base is None:
            return None
        repository = self.server.repositories[repo]
        files = dict(repository.commits[base])
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        branch = unquote(revision)
        pull_request = None
        if "create_pr" in self.query:
            repository.pull_requests += 1
            branch = f"refs/pr/{repository.pull_requests}"
            pull_request = f"{self.server.endpoint}/{repo}/discussions/{repository.pull_requests}"
        sha = repository.commit(branch, files)
        return self.reply(
            {
                "success": True,
                "commitOid": sha,
                "commitUrl": f"{self.server.endpoint}/{repo}/commit/{sha}",
                "pullRequestUrl": pull_request,
            }
        )

    def lfs_batch(self, repo: str):
        request = json.loads(self.body)
        actions = {
            "verify": {"href": f"{self.server.endpoint}/lfs/verify"},
        }
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{item['oid']}"}, **actions},
            }
            for item in request["objects"]
        ]
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.reply({"error": "content does not match its hash"}, 400)
        self.server.objects[oid] = self.body
        return self.reply()

    def lfs_verify(self):
        request = json.loads(self.body)
        known = len(self.server.objects.get(request["oid"], b"")) == request["size"]
        self.reply(status=200 if known else 404)

    def info(self, repo: str, revision: str | None = None):
        commit = self.commit_of(repo, revision)
        if commit is None:
            return None
        files = self.server.repositories[repo].commits[commit]
        siblings = [{"rfilename": path} for path in sorted(files)]
        private = repo in self.server.private
        return self.reply({"id": repo, "modelId": repo, "sha": commit, "private": private, "siblings": siblings})

    def tree(self, repo: str, revision: str, folder: str | None = None):
        commit = self.commit_of(repo, revision)
        if commit is None:
            return None
        prefix = folder.strip("/") + "/" if folder else ""
        files = self.server.repositories[repo].commits[commit]
        rows = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in sorted(files.items())
            if path.startswith(prefix)
        ]
        return self.reply(rows)

    def resolve(self, repo: str, revision: str, path: str):
        commit = self.commit_of(repo, revision)
        if commit is None:
            return None
        content = self.server.repositories[repo].commits[commit].get(unquote(path))
        if content is None:
            return self.missing("EntryNotFound", commit)
        start, status = 0, 200
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if requested:
            start, status = int(requested[1]), 206
        part = content[start : int(requested[2]) + 1] if requested and requested[2] else content[start:]
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        if self.server.cut_after is not None and len(part) > self.server.cut_after:
            self.wfile.write(part[: self.server.cut_after])
            self.server.cut_after = None
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return None
        self.wfile.write(part)
        return None

"""A server that understands as much of the Hugging Face hub's protocol as one upload and one download need."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit

REVISION = "0" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Attributes: `repos`: files by name, by repository id; `tokens`: those of the requests; `private`: ids."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.tokens, self.private = {}, set(), set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, status=200, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers.get("Authorization"))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            given = json.loads(data)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            self.server.repos.setdefault(name, {})
            if given.get("private") or given.get("visibility") == "private":
                self.server.private.add(name)
            self.answer({"url": f"{self.server.url}/{name}", "id": name, "name": name})
        elif "/preupload/" in path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(data)["files"]]
            self.answer({"files": files})
        elif "/commit/" in path:
            name = "/".join(path.split("/")[3:5])
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    self.server.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{REVISION}", "commitOid": REVISION})
        else:
            self.answer({})

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts
        name, files = "/".join(parts[:2]), self.server.repos.get("/".join(parts[:2]))
        if files is None:
            self.answer({"error": "Repository not found"}, 401, X_Error_Code="RepoNotFound")
        elif parts[2] == "resolve" and parts[4] in files:
            data = files[parts[4]]
            self.answer(data, X_Repo_Commit=REVISION, ETag=f'"{hashlib.sha1(data).hexdigest()}"')
        elif parts[2] == "revision":
            siblings = [{"rfilename": file} for file in files]
            self.answer({"id": name, "sha": REVISION, "siblings": siblings, "private": False, "tags": []})
        elif parts[2] == "tree":
            self.answer([
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in files.items()
            ])  # fmt: skip
        else:
            self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET


@contextlib.contextmanager
def serve():
    """Serves an empty hub."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()

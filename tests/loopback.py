"""A server on the loopback address that stands for mirrors and for the Hub, with the faults that downloads meet."""

import contextlib
import dataclasses
import hashlib
import http.server
import threading

CONTENT = bytes(range(256)) * 40_000  # ten blocks
COMMIT = "c" * 40


@dataclasses.dataclass
class File:
    """What the server has under a path, and how it misbehaves; `cut`: bytes after which the connection breaks."""

    content: bytes = CONTENT
    headers: dict = dataclasses.field(default_factory=lambda: {"ETag": '"1"'})
    status: int = 200
    cut: int | None = None


class Server(http.server.ThreadingHTTPServer):
    """Keeps files, the requests it got, (method, path), and the tokens by path."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.tokens = {}, [], {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def put(self, repository, name, content, commit=COMMIT, branch="main", published=None):
        """A file on the Hub; `published`: another SHA-256 than its own."""
        checksum = published or hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{checksum}"', "ETag": f'"{checksum}"'}
        for revision in (commit, branch):
            self.files[f"/{repository}/resolve/{revision}/{name}"] = File(content, headers)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        file = self.server.files.get(self.path, File(b"", {}, 404))
        self.server.requests.append((self.command, self.path))
        self.server.tokens[self.path] = self.headers.get("Authorization")
        self.send_response(file.status)
        for name, value in {**file.headers, "Content-Length": str(len(file.content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):  # the client only wanted the headers
                self.wfile.write(file.content[: file.cut])

    do_HEAD = do_GET

    def log_message(self, *_):
        pass

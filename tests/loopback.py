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
    """What the server has under a path, and how it misbehaves."""

    content: bytes = CONTENT
    headers: dict = dataclasses.field(default_factory=lambda: {"ETag": '"1"'})
    status: int = 200
    ranges: bool = True
    cut: int | None = None
    """Bytes after which the connection breaks."""


class Server(http.server.ThreadingHTTPServer):
    """Keeps files and the requests it got: (method, path, range), tokens by path, and the number of bytes sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.tokens, self.sent = {}, [], {}, 0
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
        server, asked = self.server, self.headers.get("Range")
        file = server.files.get(self.path, File(b"", {}, 404))
        server.requests.append((self.command, self.path, asked))
        server.tokens[self.path] = self.headers.get("Authorization")
        start, status, size, headers = 0, file.status, len(file.content), dict(file.headers)
        if asked and file.ranges and file.status == 200:
            start = min(int(asked.removeprefix("bytes=").removesuffix("-")), size)
            status = 206 if start < size else 416
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}" if status == 206 else f"bytes */{size}"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(size - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):  # the client only wanted the headers
                server.sent += self.wfile.write(file.content[start:][: file.cut])

    do_HEAD = do_GET

    def log_message(self, *_):
        pass

"""A loopback HTTP server that answers like the Hugging Face hub for one repository, for the real client."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubServer:
    """One repository served from `folder`.

    `cut` names a file whose next GET ends after that many bytes, as a lost connection does. `requests`
    collects (method, path, Range header or None).
    """

    repository: str
    folder: Path
    cut: dict[str, int] = field(default_factory=dict)
    status: int | None = None  # answer everything with this error
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def ranges(self, file: str) -> list[str | None]:
        """Return the Range headers of the GETs of a file, in order."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(f"/{file}")]


@contextmanager
def hub_server(repository: str, folder: Path) -> Iterator[HubServer]:
    """Serve `folder` as `repository` on a free loopback port."""
    hub = HubServer(repository, folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            hub.requests.append((self.command, path, self.headers.get("Range")))
            resolve = f"/{hub.repository}/resolve/{COMMIT}/"
            if hub.status:
                self.send({}, b'{"error": "as asked"}', body, hub.status)
            elif path in (f"/api/models/{hub.repository}", f"/api/models/{hub.repository}/revision/main"):
                names = sorted(file.name for file in hub.folder.iterdir())
                files = [{"rfilename": name} for name in names]
                info = {"id": hub.repository, "sha": COMMIT, "private": False, "siblings": files}
                self.send({"Content-Type": "application/json"}, json.dumps(info).encode(), body)
            elif path == f"/api/models/{hub.repository}/tree/{COMMIT}":  # asked for by newer clients
                files = sorted(hub.folder.iterdir())
                tree = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files
                ]
                self.send({"Content-Type": "application/json"}, json.dumps(tree).encode(), body)
            elif path.startswith(resolve) and (hub.folder / path[len(resolve) :]).is_file():
                self.send_file(path[len(resolve) :], body)
            else:
                self.send({"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}', body, 404)

        def send_file(self, name: str, body: bool) -> None:
            data = (hub.folder / name).read_bytes()
            headers = {
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            start = 0
            if wanted := self.headers.get("Range"):
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            cut = hub.cut.pop(name, None) if body else None
            self.send(headers, data[start:], body, 206 if wanted else 200, cut)

        def send(
            self, headers: dict, data: bytes, body: bool, status: int = 200, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data[:cut])
            if cut is not None:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

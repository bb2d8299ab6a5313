"""A local HTTP server of texts, as an object store is: with ETags, parts of files, and a password if wanted."""

import base64
import hashlib
import http.server
import re
import threading


class TextServer:
    """Serves `files`, by name, at `address` until `close` is called.

    Attributes:
        files: the contents by name.
        etags: whether answers have an ETag.
        ranges: whether parts of files are sent.
        password: if set, what the user "ann" has to give.
        cut: if set, how many bytes of a file are sent before the connection breaks.
        sent: how many bytes were sent so far.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.etags, self.ranges = True, True
        self.password: str | None = None
        self.cut: int | None = None
        self.sent = 0
        texts = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                texts._answer(self, body=True)

            def do_HEAD(self) -> None:
                texts._answer(self, body=False)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler, body: bool) -> None:
        name = handler.path.partition("?")[0].removeprefix("/")
        expected = base64.b64encode(f"ann:{self.password}".encode()).decode()
        if self.password is not None and handler.headers.get("Authorization") != f"Basic {expected}":
            handler.send_error(401)
            return
        if name == "":
            links = "".join(f'<a href="/{known}">{known}</a>' for known in self.files).encode()
            self._send(handler, 200, links, {}, body)
            return
        if name not in self.files:
            handler.send_error(404)
            return
        data = self.files[name]
        headers = {"Accept-Ranges": "bytes" if self.ranges else "none"}
        if self.etags:
            headers["ETag"] = f'"{hashlib.md5(data).hexdigest()}"'
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if part and self.ranges:
            start, end = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            self._send(handler, 206, data[start : end + 1], headers, body)
        else:
            self._send(handler, 200, data, headers, body)

    def _send(self, handler, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        handler.send_response(status)
        for header in {**headers, "Content-Length": str(len(data))}.items():
            handler.send_header(*header)
        handler.end_headers()
        if body:
            handler.wfile.write(data[: self.cut])
            self.sent += len(data[: self.cut])

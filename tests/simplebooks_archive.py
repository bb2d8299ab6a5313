"""Little archives in the layout of SimpleBooks, and a server to download them from, for tests."""

import http.server
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path

LINES = {
    "train": ["once upon a time .", "", "the king was dead .", " a line with\x0bodd\x85 spaces ", "ﬁne – Ünicode"],
    "valid": ["long live the queen .", "  ", "again and again ."],
    "test": ["the end ."],
}
DOCUMENTS = {split: [line for line in lines if line.strip()] for split, lines in LINES.items()}


def make_archive(path: Path, members: Mapping[str, bytes] | None = None, *, tag: str = "") -> Path:
    """Writes simplebooks-92-raw with `LINES` (their text after `tag`), and `members` besides or instead."""
    contents = {
        f"simplebooks/simplebooks-92-raw/{split}.txt": "".join(f"{tag}{line}\n" for line in lines).encode()
        for split, lines in LINES.items()
    }
    contents |= members or {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in contents.items():
            file.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return path


def damage(path: Path, name: str) -> None:
    """Changes a compressed byte of a member, so that it no longer inflates or has another CRC-32."""
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(name)
    data = bytearray(path.read_bytes())
    # A local header is 30 bytes, then the name; there is no extra field here.
    data[info.header_offset + 30 + len(name) + info.compress_size // 2] ^= 0xFF
    path.write_bytes(data)


class Server:
    """Serves bytes that a test may change, announces a length that it may change, and notes the requests."""

    def __init__(self, data: bytes):
        self.data = data
        self.announced: int | None = len(data)
        self.status = 200
        self.requests: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                server.requests.append(self.command)
                self.send_response(server.status)
                if server.announced is not None:
                    self.send_header("Content-Length", str(server.announced))
                self.end_headers()

            def do_GET(self):
                self.do_HEAD()
                self.wfile.write(server.data)

            def log_message(self, format, *args):
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/simplebooks.zip"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

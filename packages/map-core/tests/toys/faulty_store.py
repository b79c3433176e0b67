"""A server of files that fails as networks and stores do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

Fault = str | int | None


class FaultyStore(ThreadingHTTPServer):
    """Serves the files below a folder, from any byte on.

    Attributes:
        faults: What goes wrong with the next requests, one after the other; later requests succeed. A number is the
            status of the answer; "silent" never answers, "stall" stops after half of the bytes, "drop" ends the
            connection there, "cut" has only half a file, "changed" has another last byte, "no ranges" sends all bytes,
            "another range" begins one byte late, "no length" omits the number of bytes, "endless" gives a number of
            thousands of digits.
        requests: File and first byte of each request.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: Iterator[Fault] = iter(())
        self.requests: list[tuple[str, int]] = []
        self.finished = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def requested(self, ending: str) -> list[tuple[str, int]]:
        """The requests for files with this ending."""
        return [request for request in self.requests if request[0].endswith(ending)]


@contextmanager
def faulty_store(folder: Path) -> Iterator[FaultyStore]:
    """A server that answers until the block ends."""
    server = FaultyStore(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.finished.set()
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """One request; the connection ends with it."""

    server: FaultyStore

    def do_GET(self) -> None:
        fault = next(self.server.faults, None)
        name = unquote(self.path).lstrip("/")
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.server.requests.append((name, start))
        path = self.server.folder / name
        if fault == "silent":
            self.server.finished.wait()
        elif isinstance(fault, int):
            self.send_error(fault)
        elif not path.is_file():
            self.send_error(404)
        else:
            self.send_file(path.read_bytes(), start, fault)

    def send_file(self, content: bytes, start: int, fault: Fault) -> None:
        if fault == "cut":
            content = content[: len(content) // 2]
        elif fault == "changed":
            content = content[:-1] + bytes([content[-1] ^ 1])
        ranges = start > 0 and fault != "no ranges"
        if ranges and start >= len(content):
            self.send_error(416)
            return
        first = start + (fault == "another range") if ranges else 0
        self.send_response(206 if ranges else 200)
        if fault != "no length":
            self.send_header(
                "Content-Length", "9" * 5000 if fault == "endless" else str(len(content) - first)
            )
        if ranges:
            last = "9" * 5000 if fault == "endless" else len(content) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        stop = (first + len(content)) // 2 if fault in ("stall", "drop") else len(content)
        self.wfile.write(content[first:stop])
        self.wfile.flush()
        if fault == "stall":
            self.server.finished.wait()

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""

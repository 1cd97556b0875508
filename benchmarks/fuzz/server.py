"""A server of files that misbehaves in one way, in a process of its own."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzz import octets

PORTAL = b"<!DOCTYPE html><html><title>Log in</title><body>Welcome to the hotel</body></html>"
WAYS = (
    "drop", "drop", "reset", "portal", "portal", "loop", "elsewhere", "local file", "too long", "too short", "no length", "bad length", "status",
    "status", "garbage", "headers", "endless", "slow", "changed", "changed", "empty", "packed", "partial",
)  # fmt: skip


@dataclass(frozen=True)
class Behaviour:
    """What a server does wrong: in which way, for which file (its name's end), the first times or always."""

    way: str = ""
    file: str = ""
    times: int = 1
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.way} of {self.file or 'everything'}, {'always' if self.times > 99 else f'{self.times} times'}"


@contextlib.contextmanager
def serving(root: Path, behaviour: Behaviour, port: int = 0) -> Iterator[int]:
    """Serve a folder on a port of this machine, which is given; the process ends with the context."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(16)
        process = os.fork()
        if process == 0:
            _serve(listening, root, behaviour)
        try:
            yield listening.getsockname()[1]
        finally:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _serve(listening: socket.socket, root: Path, behaviour: Behaviour) -> None:
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listening
        server.server_address = listening.getsockname()
        # What it was made to do is no error.
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        _Handler.root, _Handler.behaviour, _Handler.left = root, behaviour, behaviour.times
        server.serve_forever(poll_interval=0.05)
    finally:
        os._exit(1)


class _Handler(http.server.BaseHTTPRequestHandler):
    root: Path
    behaviour: Behaviour
    left: int
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.root / self.path.split("?")[0].lstrip("/")
        content = None
        with contextlib.suppress(OSError, ValueError):
            content = path.read_bytes()
        wrong = self.behaviour.way and self.path.endswith(self.behaviour.file) and _Handler.left > 0
        if wrong:
            _Handler.left -= 1
        with contextlib.suppress(OSError):
            if wrong:
                self.close_connection = True
                self._misbehave(content or b"", Random(self.behaviour.seed))
            elif content is None:
                self._answer(404, b"no such file")
            else:
                self._answer(200, content)

    do_HEAD = do_GET

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: bytes, length: object = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length != "":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()

    def _misbehave(self, content: bytes, rng: Random) -> None:
        half = content[: rng.randrange(len(content) + 1)]
        way = self.behaviour.way
        if way == "drop":
            self._answer(200, half, len(content) + 1)
        elif way == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + half)
            self.connection.close()
        elif way == "portal":
            self._answer(200, PORTAL, Content_Type="text/html")
        elif way == "loop":
            self._answer(302, b"", Location=self.path)
        elif way == "elsewhere":
            self._answer(302, b"", Location=rng.choice(("http://127.0.0.1:9/", "/other", "//", "http://[", "")))
        elif way == "local file":
            self._answer(301, b"", Location=rng.choice(("file:///etc/hostname", "ftp://127.0.0.1/x", "data:,2")))
        elif way == "too long":
            self._answer(200, content, len(content) * 2)
        elif way == "too short":
            self._answer(200, content, len(content) // 2)
        elif way == "no length":
            self._answer(200, half, "")
        elif way == "bad length":
            self._answer(200, content, rng.choice(("-1", "many", "1e3", "99999999999999999999", "5, 6")))
        elif way == "status":
            self._answer(rng.choice([one.value for one in HTTPStatus if one.value >= 201]), half)
        elif way == "garbage":
            self.wfile.write(
                rng.choice((b"\0" * 100, b"HTTP/9.9 -1\r\n\r\n", b"200\r\n", b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000))
            )
        elif way == "headers":
            self._answer(200, content, **{f"X_{number}": "x" for number in range(200)})
        elif way == "endless":
            self._answer(200, content, "")
            while True:
                self.wfile.write(bytes(2**16))
        elif way == "slow":
            self._answer(200, b"", len(content))
            for start in range(len(content)):
                self.wfile.write(content[start : start + 1])
                time.sleep(2)
        elif way == "changed":
            changed = octets.broken(content, rng)[0] if content else b"x"
            self._answer(200, changed)
        elif way == "empty":
            self._answer(200, b"")
        elif way == "packed":
            self._answer(200, b"\x1f\x8b\x08" + bytes(40), Content_Encoding="gzip")
        elif way == "partial":
            self._answer(206, half, Content_Range=f"bytes 0-{max(len(half) - 1, 0)}/{len(content)}")

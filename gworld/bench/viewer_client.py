"""A guest of the viewer without a browser: HTTP and WebSocket (RFC 6455) on a plain socket, and viser's messages."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import struct
import time
from importlib.metadata import version
from typing import Any

import msgspec
import zstandard

CAMERA = {
    "type": "ViewerCameraMessage", "wxyz": [1.0, 0.0, 0.0, 0.0], "position": [0.0, -2.0, 1.0], "fov": 0.9, "near": 0.01,
    "far": 100.0, "image_height": 300, "image_width": 400, "look_at": [0.0, 0.0, 0.0], "up_direction": [0.0, 0.0, 1.0],
}  # fmt: skip
MAX_UNPACKED = 1 << 28


class RefusedError(Exception):
    """The server did not open a WebSocket; `status` is what it answered, 0 for nothing."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def fetch(port: int, path: str = "/", *, host: str = "", timeout: float = 10.0) -> tuple[int, bytes]:
    """Status and body of a page, asked for as it stands: nothing is tidied up in the path."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as line:
        name = host or f"localhost:{port}"
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        data = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while block := line.recv(1 << 16):
                data += block
    head, _, body = data.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]) if len(words) > 1 and words[1].isdigit() else 0), body


class Guest:
    """One open WebSocket to a viewer. Raises `RefusedError` where it is not let in, `OSError` when the line is cut."""

    def __init__(self, port: int, *, origin: str = "", timeout: float = 20.0) -> None:
        self.line = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.taken = 0
        self._data = bytearray()
        self._parts: list[bytes] = []
        lines = [
            "GET / HTTP/1.1", f"Host: localhost:{port}", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            f"Sec-WebSocket-Protocol: viser-v{version('viser')}", *([f"Origin: {origin}"] if origin else []),
        ]  # fmt: skip
        self.line.sendall("\r\n".join([*lines, "", ""]).encode())
        while b"\r\n\r\n" not in self._data:
            self._more()
        head, _, rest = bytes(self._data).partition(b"\r\n\r\n")
        self._data = bytearray(rest)
        status = head.split(b" ", 2)[1]
        if status != b"101":
            self.line.close()
            raise RefusedError(int(status) if status.isdigit() else 0)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._frame(8, struct.pack(">H", 1000))
        self.line.close()

    def say(self, message: dict[str, Any]) -> None:
        """Send one message."""
        self.send(msgspec.msgpack.encode(message))

    def send(self, payload: bytes) -> None:
        """Send bytes, whatever they are."""
        self._frame(2, payload)

    def hear(self) -> list[dict[str, Any]]:
        """The messages of the next window that the server sends; large arrays are left out."""
        raw = self._message()
        packed = int.from_bytes(raw[8:16], "little")
        inner = zstandard.ZstdDecompressor().decompress(raw[16 : 16 + packed], max_output_size=MAX_UNPACKED)
        return list(msgspec.msgpack.decode(inner)["messages"])

    def hear_until(self, wanted: Any, seconds: float) -> list[dict[str, Any]]:
        """All messages up to the first for which `wanted(message)` holds; raises `TimeoutError` when none comes."""
        found, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            self.line.settimeout(max(end - time.monotonic(), 0.001))
            for message in self.hear():
                found.append(message)
                if wanted(message):
                    return found
        raise TimeoutError

    def _message(self) -> bytes:
        """The next whole message; a timeout loses nothing of what has come."""
        while True:
            kind, last, data = self._next_frame()
            if kind == 9:
                self._frame(10, data)
            elif kind == 8:
                raise ConnectionResetError("the server hung up")
            elif kind in (0, 1, 2):
                self._parts.append(data)
                if last:
                    whole, self._parts = b"".join(self._parts), []
                    return whole

    def _next_frame(self) -> tuple[int, bool, bytes]:
        self._have(2)
        last, kind, size, start = bool(self._data[0] & 0x80), self._data[0] & 0x0F, self._data[1] & 0x7F, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            self._have(start)
            size = int.from_bytes(self._data[2:start], "big")
        self._have(start + size)
        data = bytes(self._data[start : start + size])
        del self._data[: start + size]
        return kind, last, data

    def _frame(self, kind: int, payload: bytes) -> None:
        size, mask = len(payload), os.urandom(4)
        short = size if size < 126 else 126 if size < 1 << 16 else 127
        head = struct.pack(">BB", 0x80 | kind, 0x80 | short)
        head += b"" if size < 126 else struct.pack(">H" if short == 126 else ">Q", size)
        masked = bytes(byte ^ mask[index & 3] for index, byte in enumerate(payload))
        self.line.sendall(head + mask + masked)

    def _have(self, count: int) -> None:
        while len(self._data) < count:
            self._more()

    def _more(self) -> None:
        block = self.line.recv(1 << 20)
        if not block:
            raise ConnectionResetError("the server hung up")
        self.taken += len(block)
        self._data += block

"""MCAP files and the CDR messages of ROS 2 in them, read with own eyes: every length is held against what is there.

The container: magic, records (opcode, length, body), magic. Chunks hold records packed with zstd or lz4. The message
types that robots' recordings are made of are decoded by their published layout; a file's own type texts are not needed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from gworld.errors import InputError, MissingBackendError
from gworld.files import existing_file

MAGIC = b"\x89MCAP0\r\n"
SCHEMA, CHANNEL, MESSAGE, CHUNK, FOOTER = 3, 4, 5, 6, 2
MAX_CHUNK = 1 << 28
EXPANSION = 4000


@dataclass(frozen=True)
class Topic:
    """A channel: its topic, its message type (`sensor_msgs/msg/JointState`) and how messages are encoded (`cdr`)."""

    name: str
    kind: str
    encoding: str


@dataclass(frozen=True)
class Message:
    """One message as recorded; `time` is when it was published (logged, where that was not kept), in nanoseconds."""

    topic: Topic
    time: int
    data: bytes


def read_messages(path: str | Path) -> Iterator[Message]:
    """Every message of a file, in the order in which it was written.

    Raises `InputError` for a file that is damaged or was not closed.
    """
    file = existing_file(path)
    try:
        with open(file, "rb") as stream:
            yield from _messages(stream, file)
    except (struct.error, UnicodeDecodeError, IndexError, OverflowError, ValueError, MemoryError) as error:
        raise InputError(f"`{file}` is damaged ({str(error)[:100]}). Run `mcap recover` or record again.") from error


def _messages(stream: IO[bytes], file: Path) -> Iterator[Message]:
    size = file.stat().st_size
    if stream.read(8) != MAGIC:
        raise InputError(f"`{file}` does not begin as MCAP does. Convert the recording with `ros2 bag convert`.")
    schemas: dict[int, str] = {}
    topics: dict[int, Topic] = {}
    while True:
        head = stream.read(9)
        opcode, length = struct.unpack("<BQ", head) if len(head) == 9 else (0, 0)
        if len(head) < 9 or stream.tell() + length > size:
            raise InputError(f"`{file}` ends before its footer: it was cut off, or never closed. Run `mcap recover`.")
        if opcode == FOOTER:
            return
        if opcode in (SCHEMA, CHANNEL, MESSAGE):
            yield from _record(opcode, memoryview(stream.read(length)), schemas, topics)
        elif opcode == CHUNK:
            yield from _unpacked(memoryview(stream.read(length)), schemas, topics)
        else:
            stream.seek(length, 1)


def _unpacked(body: memoryview, schemas: dict[int, str], topics: dict[int, Topic]) -> Iterator[Message]:
    _, _, size, check = struct.unpack_from("<QQQI", body)
    packing, at = _text(body, 28)
    (stored,) = struct.unpack_from("<Q", body, at)
    data = body[at + 8 :]
    if stored != len(data) or size > min(MAX_CHUNK, EXPANSION * stored + 64):
        raise ValueError(f"a chunk promises {size} bytes from {len(data)}")
    records = memoryview(_decompress(bytes(data), packing, size))
    if len(records) != size or (check and zlib.crc32(records) != check):
        raise ValueError("a chunk fails its checksum")
    at = 0
    while at < size:
        opcode, length = struct.unpack_from("<BQ", records, at)
        if at + 9 + length > size:
            raise ValueError("a record runs over its chunk")
        if opcode in (SCHEMA, CHANNEL, MESSAGE):
            yield from _record(opcode, records[at + 9 : at + 9 + length], schemas, topics)
        at += 9 + length


def _decompress(data: bytes, packing: str, size: int) -> bytes:
    if packing == "":
        return data
    if packing == "zstd":
        import zstandard

        try:
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data)
            return bytes(reader.read(size + 1))
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    if packing == "lz4":
        try:
            import lz4.frame
        except ImportError as error:
            raise MissingBackendError("this recording is packed with lz4. Run `pip install 'gworld[data]'`.") from error
        try:
            return bytes(lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=size + 1))
        except (RuntimeError, EOFError) as error:
            raise ValueError(str(error)) from error
    raise ValueError(f"chunks are packed with {packing[:20]!r}")


def _record(opcode: int, body: memoryview, schemas: dict[int, str], topics: dict[int, Topic]) -> Iterator[Message]:
    if opcode == SCHEMA:
        (number,) = struct.unpack_from("<H", body)
        schemas[number] = _text(body, 2)[0]
    elif opcode == CHANNEL:
        number, schema = struct.unpack_from("<HH", body)
        name, at = _text(body, 4)
        topics[number] = Topic(name, schemas.get(schema, ""), _text(body, at)[0])
    else:
        number, _, logged, published = struct.unpack_from("<HIQQ", body)
        if number not in topics:
            raise ValueError(f"a message names channel {number}, which was not announced")
        yield Message(topics[number], published or logged, bytes(body[22:]))


def _text(body: memoryview, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<I", body, at)
    if at + 4 + length > len(body):
        raise ValueError("a text runs over its record")
    return str(body[at + 4 : at + 4 + length], "utf-8"), at + 4 + length


class Cdr:
    """Reads plain CDR, the wire form of ROS 2: values aligned to their size, sequences with a count before them."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 4 or data[0] != 0 or data[1] not in (0, 1):
            raise ValueError("the message is not plain CDR")
        self._data, self._at = memoryview(data)[4:], 0
        self._order = "<" if data[1] else ">"

    def number(self, code: str) -> int | float:
        """One number by its `struct` code."""
        size = struct.calcsize(code)
        self._at += -self._at % size
        (value,) = struct.unpack_from(self._order + code, self._data, self._at)
        self._at += size
        return value

    def count(self, bytes_each: int = 1) -> int:
        """The length of a sequence, if that many can follow."""
        length = int(self.number("I"))
        if length * bytes_each > len(self._data) - self._at:
            raise ValueError(f"a sequence of {length} runs over its message")
        return length

    def text(self) -> str:
        """A string with its closing zero."""
        data = self.bytes()
        return str(data, "utf-8", "replace").rstrip("\0")

    def bytes(self) -> bytes:
        """A sequence of bytes."""
        length = self.count()
        self._at += length
        return bytes(self._data[self._at - length : self._at])

    def texts(self) -> list[str]:
        """A sequence of strings."""
        return [self.text() for _ in range(self.count(4))]

    def array(self, code: str = "d") -> np.ndarray:
        """A sequence of numbers as float64 [N]."""
        size, length = struct.calcsize(code), self.count()
        if length == 0:
            return np.zeros(0)
        self._at += -self._at % size
        if self._at + length * size > len(self._data):
            raise ValueError(f"a sequence of {length} runs over its message")
        kind = np.dtype(f"{self._order}{'f' if code in 'fd' else 'i'}{size}")
        values = np.frombuffer(self._data, kind, length, self._at)
        self._at += length * size
        return values.astype(np.float64)

    def plain(self, count: int) -> np.ndarray:
        """`count` float64 numbers that stand one after another."""
        return np.array([self.number("d") for _ in range(count)])

    def header(self) -> int:
        """A `std_msgs/Header`: its stamp in nanoseconds."""
        stamp = int(self.number("i")) * 1_000_000_000 + int(self.number("I"))
        self.text()
        return stamp

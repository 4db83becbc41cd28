"""TFRecord files and the `tf.train.Example` messages in them, read without TensorFlow.

A record is a length (uint64), its masked CRC-32C, the bytes, and theirs. An Example maps names to lists of bytes,
floats or integers (protocol buffers, three levels deep).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from gworld.errors import InputError
from gworld.files import existing_file

Feature = list[bytes] | np.ndarray
POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed
LANES = 2048
_HEAD = struct.Struct("<QI")


@dataclass(frozen=True)
class Record:
    """Where one record's bytes lie in its file."""

    path: Path
    offset: int
    size: int


def list_records(path: str | Path) -> list[Record]:
    """The records of a file, found by their lengths; raises `InputError` where a length is damaged or runs over."""
    file = existing_file(path)
    end, at = file.stat().st_size, 0
    records: list[Record] = []
    with open(file, "rb") as stream:
        while at < end:
            head = stream.read(_HEAD.size)
            size, check = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)
            if len(head) < _HEAD.size or masked_crc(head[:8]) != check or at + size + 16 > end:
                raise InputError(
                    f"`{file}` is damaged or cut off at byte {at}, in record {len(records)}. Copy it again."
                )
            records.append(Record(file, at + _HEAD.size, size))
            at += size + 16
            stream.seek(at)
    return records


def read_record(record: Record) -> dict[str, Feature]:
    """One record as an Example; raises `InputError` when its checksum is wrong or its message damaged."""
    with open(existing_file(record.path), "rb") as stream:
        stream.seek(record.offset)
        data = stream.read(record.size + 4)
    body = data[: record.size]
    if len(data) != record.size + 4 or masked_crc(body) != int.from_bytes(data[record.size :], "little"):
        raise InputError(
            f"`{record.path}`: the record at byte {record.offset} fails its checksum. Copy the file again."
        )
    return parse_example(body, f"{record.path} at byte {record.offset}")


def write_records(path: Path, bodies: list[bytes]) -> None:
    """Write records with their checksums."""
    with open(path, "wb") as stream:
        for body in bodies:
            head = struct.pack("<Q", len(body))
            stream.write(head + struct.pack("<I", masked_crc(head)) + body + struct.pack("<I", masked_crc(body)))


def parse_example(data: bytes, source: str) -> dict[str, Feature]:
    """Names to lists of bytes, float32 [N] or int64 [N]; an empty feature is an empty list."""
    found: dict[str, Feature] = {}
    try:
        for _, features in _fields(data, {1}):
            for _, entry in _fields(features, {1}):
                parts = dict(_fields(entry, {1, 2}))
                found[str(parts[1], "utf-8")] = _feature(parts.get(2, b""))
    except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        raise InputError(f"`{source}` holds no tf.train.Example ({str(error)[:100]}). Export it again.") from error
    return found


def example_bytes(features: dict[str, Feature]) -> bytes:
    """An Example as protocol buffer: the inverse of `parse_example`."""

    def field(number: int, body: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint_bytes(len(body)) + body

    entries = b""
    for name, values in features.items():
        if isinstance(values, list):
            feature = field(1, b"".join(field(1, value) for value in values))
        elif values.dtype.kind == "f":
            feature = field(2, field(1, values.astype("<f4").tobytes()))
        else:
            feature = field(3, field(1, b"".join(_varint_bytes(int(v) % (1 << 64)) for v in values)))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def _feature(data: bytes) -> Feature:
    for kind, body in _fields(data, {1, 2, 3}):
        if kind == 1:
            return [bytes(value) for _, value in _fields(body, {1})]
        if kind == 2:
            parts = [value for _, value in _fields(body, {1})]
            return np.frombuffer(b"".join(parts), "<f4").astype(np.float32)
        return np.array([v for _, part in _fields(body, {1}) for v in _varints(part)], np.int64)
    return []


def _fields(data: bytes, known: set[int]) -> Iterator[tuple[int, bytes]]:
    """The known fields of a message with their bytes; a number that stands alone comes as its own bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 2:
            size, start = _varint(data, at)
            at = start + size
        elif kind == 0:
            start = at
            _, at = _varint(data, at)
        elif kind in (1, 5):
            start = at
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(data):
            raise ValueError("a field runs over the end")
        if key >> 3 in known:
            yield key >> 3, data[start:at]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")


def _varints(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        value &= (1 << 64) - 1
        yield value - (1 << 64) if value >> 63 else value


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted as TFRecord stores it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C of bytes: long data in lanes side by side, joined by the linearity of the code over GF(2)."""
    table = _table()
    lane = len(data) // LANES
    crc, rest = 0xFFFFFFFF, data
    if lane >= 16:
        columns = np.frombuffer(data, np.uint8, lane * LANES).reshape(LANES, lane).T
        lanes = np.zeros(LANES, np.uint32)
        for column in np.ascontiguousarray(columns):
            lanes = table[(lanes ^ column) & 255] ^ (lanes >> np.uint32(8))
        skip = _skip(lane)
        for value in lanes.tolist():
            crc = skip[0][crc & 255] ^ skip[1][crc >> 8 & 255] ^ skip[2][crc >> 16 & 255] ^ skip[3][crc >> 24] ^ value
        rest = data[lane * LANES :]
    steps = table.tolist()
    for byte in rest:
        crc = steps[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> np.ndarray:
    """What one byte does to the code [256]."""
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, values >> np.uint32(1) ^ np.uint32(POLYNOMIAL), values >> np.uint32(1))
    return values


@cache
def _skip(count: int) -> list[list[int]]:
    """What `count` zero bytes do to each byte of the code, as four tables of 256."""
    table = _table()
    step = np.array([1 << bit for bit in range(32)], np.uint32)  # images of the unit vectors
    power = table[step & 255] ^ step >> np.uint32(8)  # one zero byte
    while count:
        if count & 1:
            step = _apply(power, step)
        power = _apply(power, power)
        count >>= 1
    places = [np.arange(256, dtype=np.uint32) << np.uint32(8 * place) for place in range(4)]
    return [_apply(step, place).tolist() for place in places]


def _apply(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """GF(2) matrix (columns as numbers [32]) times vectors [N]."""
    bits = (vectors[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    return np.bitwise_xor.reduce(np.where(bits.astype(bool), matrix[None], 0), axis=1).astype(np.uint32)

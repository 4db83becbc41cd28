"""Containers opened and closed again, so that a mutant can be damaged inside and still be well-formed outside.

A shell turns the bytes of a file into named parts and back; sizes, checksums and offsets are made right again.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

Parts = dict[str, bytes]


@dataclass(frozen=True)
class Shell:
    """`open` and `close` are each other's inverse; `attack` gives a file with a damaged container."""

    open: Callable[[bytes], Parts]
    close: Callable[[Parts], bytes]
    attack: Callable[[bytes, random.Random], bytes]


def _open_gzip(data: bytes) -> Parts:
    return {"payload.bin": gzip.decompress(data)}


def _close_gzip(parts: Parts) -> bytes:
    return gzip.compress(parts["payload.bin"], 1, mtime=0)


def _attack_gzip(data: bytes, rng: random.Random) -> bytes:
    payload = gzip.decompress(data)
    kind = rng.choice(["bomb", "bomb behind", "two members", "empty", "bad checksum"])
    if kind == "bomb":
        return gzip_bomb()
    if kind == "bomb behind":  # a sound header, then far more than it announces
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        return packer.compress(payload) + b"".join(packer.compress(bytes(1 << 24)) for _ in range(8)) + packer.flush()
    if kind == "two members":
        return data + data
    return _close_gzip({"payload.bin": b""}) if kind == "empty" else data[:-8] + bytes(4) + data[-4:]


@cache
def gzip_bomb() -> bytes:
    """256 MB of zeros in 256 KB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(bytes(1 << 24)) for _ in range(16)), packer.flush()])


def _open_ngsp(data: bytes) -> Parts:
    import zstandard

    streams, toc = struct.unpack_from("<BI", data, 15)
    parts = {"front.bin": data[:toc]}
    start = toc + 16 * streams
    for index in range(streams):
        packed, _ = struct.unpack_from("<QQ", data, toc + 16 * index)
        parts[f"{index}.bin"] = zstandard.ZstdDecompressor().decompress(data[start : start + packed], 1 << 24)
        start += packed
    return parts


def _close_ngsp(parts: Parts) -> bytes:
    import zstandard

    plain = [part for name, part in parts.items() if name != "front.bin"]
    frames = [zstandard.ZstdCompressor(level=1).compress(part) for part in plain]
    toc = b"".join(struct.pack("<QQ", len(frame), len(part)) for frame, part in zip(frames, plain, strict=True))
    return parts["front.bin"] + toc + b"".join(frames)


def _attack_ngsp(data: bytes, rng: random.Random) -> bytes:
    """One stream becomes a frame of 256 MB of zeros that claims its size or claims none."""
    streams, toc = struct.unpack_from("<BI", data, 15)
    target, start = rng.randrange(streams), toc + 16 * streams
    sizes = [list(struct.unpack_from("<QQ", data, toc + 16 * index)) for index in range(streams)]
    frames = []
    for packed, _ in sizes:
        frames.append(data[start : start + packed])
        start += packed
    frames[target] = zstd_bomb(rng.random() < 0.5)
    sizes[target][0] = len(frames[target])
    if rng.random() < 0.5:
        sizes[target][1] = rng.choice([1 << 28, 0, 1, 1 << 40])
    return data[:toc] + b"".join(struct.pack("<QQ", *size) for size in sizes) + b"".join(frames)


@cache
def zstd_bomb(claims: bool) -> bytes:
    import zstandard

    packer = zstandard.ZstdCompressor(level=1).compressobj(size=1 << 28 if claims else -1)
    return b"".join([*(packer.compress(bytes(1 << 24)) for _ in range(16)), packer.flush()])


def _open_zip(data: bytes) -> Parts:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _close_zip(parts: Parts) -> bytes:
    return _zip([(zipfile.ZipInfo(name), content) for name, content in parts.items()])


def _zip(members: list[tuple[zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", method) as archive:
        warnings.simplefilter("ignore")  # duplicates are wanted
        for info, content in members:
            archive.writestr(info, content, compress_type=method)
    return stream.getvalue()


def _attack_zip(data: bytes, rng: random.Random) -> bytes:
    """Names that lead outside, links, duplicates, missing members, bombs, sizes and methods that lie."""
    members = [(zipfile.ZipInfo(name), content) for name, content in _open_zip(data).items()]
    index = rng.randrange(len(members))
    info, content = members[index]
    kind = rng.choice(["name", "name", "link", "double", "missing", "bomb", "sizes", "many", "folder"])
    if kind == "name":
        prefix = rng.choice(["../", "../../", "/tmp/", "/", "..\\", "C:\\", "a/../../", "\x01", "./", "e\u0301/"])
        members[index] = (zipfile.ZipInfo(prefix + info.filename), content)
    elif kind == "link":
        info.external_attr = 0o120777 << 16
        members[index] = (info, rng.choice([b"/etc/passwd", b"../outside", content]))
    elif kind == "double":
        members.append((zipfile.ZipInfo(info.filename), rng.choice([content, b"", content[: len(content) // 2]])))
    elif kind == "missing":
        del members[index]
    elif kind == "bomb":
        return zip_with_bomb(members, index, lie=rng.random() < 0.5)
    elif kind == "many":
        members += [(zipfile.ZipInfo(f"extra/{number}.bin"), b"") for number in range(2000)]
    elif kind == "folder":
        members[index] = (zipfile.ZipInfo(info.filename + "/"), b"")
    packed = bytearray(_zip(members, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))
    if kind == "sizes":
        places = [
            place for place in range(len(packed) - 30) if packed[place : place + 4] in (b"PK\x01\x02", b"PK\x03\x04")
        ]
        for place in rng.sample(places, min(3, len(places))):
            field = rng.choice([8, 18, 22, 26] if packed[place + 2] == 3 else [10, 20, 24, 28, 42])
            struct.pack_into("<H", packed, place + field, rng.choice([0, 1, 99, 0x7FFF, 0xFFFF]))
    return bytes(packed)


def zip_with_bomb(members: list[tuple[zipfile.ZipInfo, bytes]], index: int, *, lie: bool) -> bytes:
    """One member inflates to 256 MB; where it lies, its headers say 1000 bytes."""
    marker = b"\0bomb\0" * 50
    members[index] = (members[index][0], marker)
    packed = _zip(members)
    body = gzip_bomb()[10:-8]
    size = 1000 if lie else 1 << 28
    place = packed.index(marker)
    out = packed[:place] + body + packed[place + len(marker) :]
    grown = len(body) - len(marker)
    result = bytearray(out)
    start = 0
    while (start := _next_header(result, start)) >= 0:
        central = result[start + 2] == 1
        shift = 2 if central else 0
        local = struct.unpack_from("<I", result, start + 42)[0] if central else start
        if local < place == local + 30 + sum(struct.unpack_from("<HH", result, local + 26)):
            struct.pack_into("<H", result, start + 8 + shift, 8)
            struct.pack_into("<II", result, start + 18 + shift, len(body), size)
        if central and local > place:
            struct.pack_into("<I", result, start + 42, local + grown)
        start += 4
    end = result.rindex(b"PK\x05\x06")
    struct.pack_into("<I", result, end + 16, struct.unpack_from("<I", result, end + 16)[0] + grown)
    return bytes(result)


def _next_header(data: bytearray, start: int) -> int:
    found = [place for place in (data.find(b"PK\x01\x02", start), data.find(b"PK\x03\x04", start)) if place >= 0]
    return min(found, default=-1)


def _open_glb(data: bytes) -> Parts:
    parts, start = {}, 12
    while start + 8 <= len(data):
        length, kind = struct.unpack_from("<I4s", data, start)
        parts["document.json" if kind == b"JSON" else "buffer.bin"] = data[start + 8 : start + 8 + length]
        start += 8 + length
    return parts


def _close_glb(parts: Parts) -> bytes:
    chunks = []
    for name, content in parts.items():
        kind, filler = (b"JSON", b" ") if name.endswith(".json") else (b"BIN\0", b"\0")
        padded = content + filler * (-len(content) % 4)
        chunks.append(struct.pack("<I4s", len(padded), kind) + padded)
    body = b"".join(chunks)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def _attack_glb(data: bytes, rng: random.Random) -> bytes:
    """Chunk lengths and order that do not fit."""
    parts = _open_glb(data)
    kind = rng.choice(["order", "no buffer", "no document", "length", "double"])
    if kind == "order":
        return _close_glb(dict(reversed(parts.items())))
    if kind in ("no buffer", "no document"):
        return _close_glb(
            {name: part for name, part in parts.items() if name.endswith(".json") == (kind == "no buffer")}
        )
    result = bytearray(data + data[12:] if kind == "double" else data)
    struct.pack_into("<I", result, rng.choice([8, 12]), rng.choice([0, 1, 3, 1 << 31, 0xFFFFFFFF, len(data) - 1]))
    return bytes(result)


def _open_tfrecord(data: bytes) -> Parts:
    parts, at = {}, 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        parts[f"{len(parts)}.bin"] = data[at + 12 : at + 12 + size]
        at += size + 16
    return parts


def _close_tfrecord(parts: Parts) -> bytes:
    from gworld.data.tfrecord import masked_crc

    out = b""
    for body in parts.values():
        head = struct.pack("<Q", len(body))
        out += head + struct.pack("<I", masked_crc(head)) + body + struct.pack("<I", masked_crc(body))
    return out


def _attack_tfrecord(data: bytes, rng: random.Random) -> bytes:
    """A length with the right checksum that promises too much, or a checksum that is wrong."""
    from gworld.data.tfrecord import masked_crc

    head = struct.pack("<Q", rng.choice([0, 1, len(data), 1 << 31, 1 << 40, (1 << 64) - 1]))
    if rng.random() < 0.7:
        return head + struct.pack("<I", masked_crc(head)) + data[12:]
    return data[:-4] + rng.randbytes(4)


SHELLS = {
    "gzip": Shell(_open_gzip, _close_gzip, _attack_gzip),
    "ngsp": Shell(_open_ngsp, _close_ngsp, _attack_ngsp),
    "zip": Shell(_open_zip, _close_zip, _attack_zip),
    "glb": Shell(_open_glb, _close_glb, _attack_glb),
    "tfrecord": Shell(_open_tfrecord, _close_tfrecord, _attack_tfrecord),
}

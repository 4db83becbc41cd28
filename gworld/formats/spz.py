"""SPZ, Niantic's compressed splats: the gzip files of versions 1 to 3 and the zstd container of version 4.

A legacy file is one gzip stream: 16 bytes of header, then the attribute streams. Version 4 has a plain header of 32
bytes, optional extension records, a table of (compressed, plain) sizes, and one zstd frame per stream.

Axes: the format's own library stores Right/Up/Back, and the files found in the wild do; a version 4 file may state
others in the extension `SPZ_ADOBE_coordinate_system`. PlayCanvas' splat-transform converts nothing, so what it writes
from a PLY is Right/Down/Forward without saying so: read that with `axes="RDF"`.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gworld.errors import InputError, UsageError
from gworld.files import atomic_write, check_count, check_memory, existing_file
from gworld.formats import spz_streams
from gworld.formats.axes import axes_rotation, bake_links, to_axes
from gworld.formats.table import Axes, SplatTable, check_table

MAGIC = b"NGSP"
GZIP_MAGIC = b"\x1f\x8b"
ANTIALIASED, HAS_EXTENSIONS, HAS_LOD_TREE = 0x01, 0x02, 0x80
AXES_EXTENSION = 0xADBE0003
AXES_CODES: dict[Axes, int] = {"RUB": 4, "RDF": 6, "RFU": 12}

# Quantised splats shrink 1 to 10 times. Files that claim to shrink far more are refused before they are inflated,
# beyond what costs little (400,000 equal Gaussians without harmonics).
MAX_RATIO = 32
FREE_BYTES = 8 << 20
MAX_EXTENSION_BYTES = 64 << 10
_DEFLATE_PIECE = 1 << 20
_WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class SpzHeader:
    """What a file says of itself; `axes` is how its numbers are stored, `antialiased` how its scene was trained."""

    version: int
    count: int
    sh_degree: int
    fraction_bits: int
    antialiased: bool
    axes: Axes = "RUB"


def read_spz(path: str | Path, *, axes: Axes | None = None) -> SplatTable:
    """Read an SPZ file of version 1 to 4 into a table with axes RDF.

    `axes` overrides what the file's numbers are taken to be (by default what it states, else RUB). Harmonics of degree
    4 are cut to degree 3. Opacity bytes 0 and 255 become logits of +-13.8, as their own would be infinite.
    Raises `InputError` for a damaged or cut file, one of unknown version, or one whose payload is not exactly what its
    header promises.
    """
    file = existing_file(path)
    header, streams = _open(file.read_bytes(), str(file))
    stored = axes or header.axes
    signs = np.diagonal(axes_rotation(stored, "RDF"))
    flips = bool(signs.all())  # RUB: negated while they are decoded
    table = spz_streams.decode_streams(
        streams, header.version, header.sh_degree, header.fraction_bits, signs if flips else np.ones(3)
    )
    return check_table(to_axes(replace(table, axes="RDF" if flips else stored), "RDF"), str(file))


def read_spz_header(path: str | Path) -> SpzHeader:
    """The header of an SPZ file, without inflating its Gaussians; raises `InputError` as `read_spz` does."""
    file = existing_file(path)
    with open(file, "rb") as stream:
        data = stream.read(MAX_EXTENSION_BYTES)
    if data[:2] == GZIP_MAGIC:
        return _parse_header(_inflate(zlib.decompressobj(31), data, 16, str(file)), str(file))
    return _parse_ngsp(data, str(file))[0]


def write_spz(
    table: SplatTable, path: str | Path, *, version: int = 3, antialiased: bool = False, axes: Axes = "RUB"
) -> None:
    """Write an SPZ file: version 2 or 3 (gzip; 3 is what most tools read) or 4 (zstd container).

    Links are baked into the world by their rest poses. Lossy: positions to 1/4096 (finer for small scenes), log scales
    to 1/16 within -10..5.94, rotations to 0.2 degrees (about 1 in version 2), harmonics to 5 and 4 bits within -1..1.
    `axes` other than RUB are stored as they are and stated in version 4; older versions cannot state them.
    Raises `UsageError` for another version, `InputError` when a coordinate exceeds 24 bits or a value is not finite.
    """
    if version not in (2, 3, 4):
        raise UsageError(f"SPZ version {version} cannot be written; choose 2, 3 or 4.")
    check_table(table, "the scene to write")
    table = to_axes(bake_links(table), axes)
    bits = spz_streams.choose_fraction_bits(table.means)
    if bits is None:
        raise InputError(
            f"`{path}`: coordinates reach {float(np.abs(table.means).max()):.3g}, but SPZ holds at most 8388607 units. "
            "Crop or scale the scene first, or write a PLY."
        )
    encoders: list[Callable[[], np.ndarray]] = [
        lambda: spz_streams.encode_positions(table, bits),
        lambda: spz_streams.encode_alphas(table),
        lambda: spz_streams.encode_colors(table),
        lambda: spz_streams.encode_scales(table),
        lambda: spz_streams.encode_rotations(table, version),
        lambda: spz_streams.encode_rest(table),
    ]
    flags = (ANTIALIASED if antialiased else 0) | (HAS_EXTENSIONS if version == 4 and axes != "RUB" else 0)
    head = struct.pack("<4sIIBBB", MAGIC, version, len(table), table.sh_degree, bits, flags)
    pieces = _pack_ngsp(head, axes, encoders) if version == 4 else _pack_gzip(head + b"\0", encoders)
    with atomic_write(path) as stream:
        for piece in pieces:
            stream.write(piece)


def _open(data: bytes, source: str) -> tuple[SpzHeader, list[np.ndarray]]:
    """Header and uint8 streams of either container."""
    if data[:2] == GZIP_MAGIC:
        return _open_gzip(data, source)
    return _open_ngsp(data, source)


def _parse_header(data: bytes, source: str) -> SpzHeader:
    if len(data) < 16 or data[:4] != MAGIC:
        raise InputError(f"`{source}` does not start with an SPZ header. Is it another format, or cut off?")
    version, count, degree, bits, flags = struct.unpack_from("<IIBBB", data, 4)
    if version not in (1, 2, 3, 4):
        raise InputError(f"`{source}` is SPZ version {version}; 1 to 4 can be read. Convert it with a newer tool.")
    if degree > 4 or bits > spz_streams.MAX_FRACTION_BITS:
        raise InputError(
            f"`{source}`: the header states SH degree {degree} and {bits} fractional bits; at most 4 and "
            f"{spz_streams.MAX_FRACTION_BITS} make sense. The file is damaged; export it again."
        )
    return SpzHeader(version, count, degree, bits, bool(flags & ANTIALIASED))


def _check_size(header: SpzHeader, available: int, source: str) -> int:
    """Plain bytes of all streams, if the file can hold them."""
    width = sum(spz_streams.stream_widths(header.version, header.sh_degree))
    check_count(header.count, width, FREE_BYTES + MAX_RATIO * available, source, "Gaussians")
    columns = 14 + 3 * spz_streams.REST_COUNTS[min(header.sh_degree, 3)]
    check_memory(header.count * (4 * columns + 2 * width), f"reading the {header.count} Gaussians of `{source}`")
    return header.count * width


def _open_gzip(data: bytes, source: str) -> tuple[SpzHeader, list[np.ndarray]]:
    inflater = zlib.decompressobj(31)
    head = _inflate(inflater, data, 16, source)
    header = _parse_header(head, source)
    if header.version > 3:
        raise InputError(f"`{source}` is a gzip stream of SPZ version {header.version}; such a file is never gzipped.")
    size = _check_size(header, len(data), source)
    flags = head[14]
    room = MAX_EXTENSION_BYTES if flags & HAS_EXTENSIONS else 1
    payload = _inflate(inflater, inflater.unconsumed_tail, size + room, source)
    trailing = len(payload) > size
    if len(payload) < size or (trailing and not flags & (HAS_EXTENSIONS | HAS_LOD_TREE)):
        raise InputError(
            f"`{source}`: {header.count} Gaussians need {size} bytes but the stream holds "
            f"{'more' if trailing else len(payload)}. The file is damaged or cut off; copy or export it again."
        )
    if not trailing and not inflater.eof:
        raise InputError(f"`{source}`: the gzip stream is cut off before its end. Copy or export the file again.")
    if flags & HAS_EXTENSIONS:
        header = _apply_extensions(header, payload[size:], source)
    ends = np.cumsum(spz_streams.stream_widths(header.version, header.sh_degree)) * header.count
    return header, np.split(np.frombuffer(payload, np.uint8, size), ends[:-1])


def _inflate(inflater: zlib._Decompress, data: bytes, limit: int, source: str) -> bytes:
    try:
        return inflater.decompress(data, limit)
    except zlib.error as error:
        raise InputError(f"`{source}`: the gzip stream is damaged ({error}). Copy or export the file again.") from error


def _parse_ngsp(data: bytes, source: str) -> tuple[SpzHeader, int, int]:
    """Header, number of streams and offset of their table."""
    header = _parse_header(data, source)
    if header.version != 4 or len(data) < 32:
        raise InputError(
            f"`{source}` is not gzipped although it is SPZ version {header.version}, or ends in its header. "
            "The file is damaged; export it again."
        )
    streams, toc = struct.unpack_from("<BI", data, 15)
    if toc < 32:
        raise InputError(f"`{source}`: the table of streams starts at byte {toc}, inside the header. Export it again.")
    if data[14] & HAS_EXTENSIONS:
        header = _apply_extensions(header, data[32:toc], source)
    return header, streams, toc


def _open_ngsp(data: bytes, source: str) -> tuple[SpzHeader, list[np.ndarray]]:
    header, streams, toc = _parse_ngsp(data, source)
    _check_size(header, len(data), source)
    sizes = [header.count * width for width in spz_streams.stream_widths(4, header.sh_degree)]
    wanted = 6 if header.sh_degree else 5
    start = toc + 16 * streams
    if streams != wanted or start > len(data):
        raise InputError(
            f"`{source}`: {streams} streams at byte {toc} of {len(data)} are listed; SH degree {header.sh_degree} "
            f"needs {wanted}, listed before the end. The file is damaged or cut off; export it again."
        )
    frames = []
    for index in range(wanted):
        packed, plain = struct.unpack_from("<QQ", data, toc + 16 * index)
        if plain != sizes[index] or start + packed > len(data):
            raise InputError(
                f"`{source}`: stream {index} has {plain} plain and {packed} packed bytes; {sizes[index]} plain bytes "
                f"are needed and {len(data) - start} packed ones are left. The file is damaged or cut off; "
                "export it again."
            )
        frames.append(memoryview(data)[start : start + packed])
        start += packed
    with ThreadPoolExecutor(_WORKERS) as pool:
        plain_streams = list(pool.map(lambda frame, size: _unpack_frame(frame, size, source), frames, sizes))
    return header, plain_streams + [np.zeros(0, np.uint8)] * (6 - wanted)


def _unpack_frame(frame: memoryview, size: int, source: str) -> np.ndarray:
    import zstandard

    try:
        # The decompressor allocates what the frame claims, so the claim is checked first; -1 means it makes none.
        claimed = zstandard.frame_content_size(frame)
        if claimed in (-1, size):
            reader = zstandard.ZstdDecompressor(max_window_size=max(8 << 20, 2 * size))
            plain = reader.decompress(frame, max_output_size=size) if size else b""
            if len(plain) == size:
                return np.frombuffer(plain, np.uint8)
        fact = f"does not hold the {size} bytes its header promises"
    except (zstandard.ZstdError, MemoryError) as error:
        fact = f"cannot be unpacked ({error})"
    raise InputError(f"`{source}`: a stream {fact}. The file is damaged; copy or export it again.")


def _apply_extensions(header: SpzHeader, records: bytes, source: str) -> SpzHeader:
    """The header with what its extension records state; unknown ones are skipped, as the format asks."""
    start = 0
    while start + 8 <= len(records):
        kind, length = struct.unpack_from("<II", records, start)
        payload = records[start + 8 : start + 8 + length]
        if kind == AXES_EXTENSION and length == 4 and len(payload) == 4:
            code = struct.unpack("<I", payload)[0]
            names = {value: name for name, value in AXES_CODES.items()} | {0: "RUB"}
            if code not in names:
                raise InputError(
                    f"`{source}` states coordinate system {code}, which is mirrored or unknown; 4 (RUB), 6 (RDF) and "
                    "12 (RFU) can be read. Export it in one of these."
                )
            header = replace(header, axes=names[code])
        start += 8 + length
    return header


def _pack_ngsp(head: bytes, axes: Axes, encoders: list[Callable[[], np.ndarray]]) -> list[bytes]:
    import zstandard

    def pack(encode: Callable[[], np.ndarray]) -> tuple[bytes, int]:
        plain = encode()
        return zstandard.ZstdCompressor(level=9).compress(plain.data), plain.size

    sh_degree = head[12]
    with ThreadPoolExecutor(_WORKERS) as pool:
        frames = list(pool.map(pack, encoders[: 6 if sh_degree else 5]))
    extension = b"" if axes == "RUB" else struct.pack("<III", AXES_EXTENSION, 4, AXES_CODES[axes])
    front = head + struct.pack("<BI12x", len(frames), 32 + len(extension)) + extension
    toc = b"".join(struct.pack("<QQ", len(frame), size) for frame, size in frames)
    return [front, toc, *(frame for frame, _ in frames)]


def _pack_gzip(head: bytes, encoders: list[Callable[[], np.ndarray]]) -> list[bytes]:
    """One gzip member, deflated in parallel: pieces end on byte boundaries and know the 32 KB before them."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        streams = list(pool.map(lambda encode: encode(), encoders))
        payload = memoryview(b"".join([head, *(stream.data for stream in streams)]))
        starts = range(0, len(payload), _DEFLATE_PIECE)

        def deflate(start: int) -> bytes:
            last = start + _DEFLATE_PIECE >= len(payload)
            before = payload[max(0, start - (32 << 10)) : start]
            packer = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, before)
            body = packer.compress(payload[start : start + _DEFLATE_PIECE])
            return body + packer.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)

        bodies = list(pool.map(deflate, starts))
    tail = struct.pack("<II", zlib.crc32(payload), len(payload) & 0xFFFFFFFF)
    return [b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff", *bodies, tail]

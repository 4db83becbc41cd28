"""Compressed PLY (`.compressed.ply`): Gaussians packed into 16 bytes, relative to bounds of chunks of 256.

`packed_position` and `packed_scale` hold 11, 10 and 11 bits between the chunk's bounds, `packed_rotation` 2 bits (which
component is largest) and three of 10, `packed_color` four of 8; higher SH are bytes. Source: SuperSplat and
splat-transform (PlayCanvas, MIT), whose quantisation steps are kept.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gworld.errors import InputError
from gworld.files import atomic_write, check_count
from gworld.formats.morton import BITS, morton_codes
from gworld.formats.ply import REST_COUNTS
from gworld.formats.ply_header import (
    PlyElement,
    PlyLayout,
    element_offset,
    format_remarks,
    parse_remarks,
    read_ply_layout,
)
from gworld.formats.splat import bytes_from_logits, logits_from_bytes, refuse_links
from gworld.formats.table import SplatTable, check_table, empty_table
from gworld.scene.harmonics import rgb_from_sh, sh_from_rgb

CHUNK = 256
WORKERS = min(4, os.cpu_count() or 1)
BLOCK_ROWS = 64 * CHUNK  # a block of rows and its columns stay in the cache

AXIS = ("x", "y", "z")
BOUNDS = (
    *(f"min_{axis}" for axis in AXIS),
    *(f"max_{axis}" for axis in AXIS),
    *(f"min_scale_{axis}" for axis in AXIS),
    *(f"max_scale_{axis}" for axis in AXIS),
)
COLOR_BOUNDS = ("min_r", "min_g", "min_b", "max_r", "max_g", "max_b")
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")

_SHIFTS = np.array([21, 11, 0], np.uint32)
_LIMITS = np.array([2047, 1023, 2047], np.uint32)
_COLOR_SHIFTS = np.array([24, 16, 8], np.uint32)
_ROTATION_SHIFTS = np.array([20, 10, 0], np.uint32)
_SMALL = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])  # the components beside the largest
_SH_LEVELS = ((np.concatenate([[0.0], (np.arange(1, 255) + 0.5) / 256, [1.0]]) - 0.5) * 8).astype(np.float32)


def read_compressed_ply(path: str | Path, *, check: bool = True) -> SplatTable:
    """Read a compressed PLY.

    With `check=False` rows that cannot be rendered are kept, for `table.bad_rows` to find.

    Raises `InputError` when the header is damaged, promises more than the file holds, or a value cannot be rendered.
    """
    layout = read_ply_layout(path)
    chunk, vertex, harmonics = _elements(layout)
    remarks = parse_remarks(layout.comments)
    table = empty_table(vertex.count, REST_COUNTS[len(harmonics.properties)])
    bounds = _read_bounds(layout, chunk)

    def decode(start: int) -> None:
        where = slice(start, min(start + BLOCK_ROWS, vertex.count))
        _decode(_rows(layout, vertex, where), bounds[start // CHUNK :], table, where)
        if harmonics.properties:
            _decode_harmonics(_rows(layout, harmonics, where), table.sh[where, 1:])

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(decode, range(0, vertex.count, BLOCK_ROWS)))
    columns = (table.means, table.quats_wxyz, table.log_scales, table.opacity_logits, table.sh, table.links)
    table = SplatTable(*columns, axes=remarks.axes, metric=remarks.metric)
    return check_table(table, str(layout.path)) if check else table


def write_compressed_ply(table: SplatTable, path: str | Path) -> None:
    """Write a compressed PLY; rows are sorted along a Morton curve, so that chunks are small and precise.

    Raises `UsageError` for tables with several links, which the format cannot hold.
    """
    check_table(table, str(path))
    refuse_links(table, path)
    order = morton_order(table.means)
    rest = 3 * (table.sh.shape[1] - 1)
    chunks = np.empty((-(-len(table) // CHUNK), len(BOUNDS) + len(COLOR_BOUNDS)), "<f4")
    packed = np.empty((len(table), len(PACKED)), "<u4")
    harmonics = np.empty((len(table), rest), np.uint8)
    for start in range(0, len(table), BLOCK_ROWS):
        part = table.select(order[start : start + BLOCK_ROWS])
        rows = slice(start, start + BLOCK_ROWS)
        chunks[start // CHUNK : start // CHUNK + BLOCK_ROWS // CHUNK], packed[rows] = _encode(part)
        levels = np.clip(part.sh[:, 1:] * np.float32(32) + np.float32(128), 0, 255).astype(np.uint8)
        harmonics[rows] = levels.transpose(0, 2, 1).reshape(len(part), rest)
    lines = ["ply", "format binary_little_endian 1.0", *format_remarks(table), f"element chunk {len(chunks)}"]
    lines += [f"property float {name}" for name in BOUNDS + COLOR_BOUNDS] + [f"element vertex {len(table)}"]
    lines += [f"property uint {name}" for name in PACKED] + [f"element sh {len(table)}"] * (rest > 0)
    lines += [f"property uchar f_rest_{index}" for index in range(rest)] + ["end_header", ""]
    with atomic_write(path) as stream:
        stream.write("\n".join(lines).encode("ascii"))
        for section in (chunks, packed, harmonics):
            stream.write(section.data)


def morton_order(points: np.ndarray) -> np.ndarray:
    """Row indices that sort points `[N, 3]` along a Morton (Z-order) curve of 2^21 steps per axis."""
    if len(points) == 0:
        return np.zeros(0, np.int64)
    low = points.min(axis=0).astype(np.float64)
    span = np.maximum(points.max(axis=0) - low, 1e-30)
    cells = (points - low) * ((2**BITS - 1) / span)
    return np.argsort(morton_codes(cells), kind="stable")


def _elements(layout: PlyLayout) -> tuple[PlyElement, PlyElement, PlyElement]:
    """The chunk, vertex and SH elements, checked against each other."""
    chunk, vertex = layout.element("chunk"), layout.element("vertex")
    if chunk is None or vertex is None or layout.encoding == "ascii":
        raise InputError(
            f"`{layout.path}` is not a compressed PLY: binary elements `chunk` and `vertex` are needed. Choose another "
            "file, or convert it with `gworld convert`."
        )
    harmonics = layout.element("sh") or PlyElement("sh", vertex.count, {})
    wanted = [(chunk, BOUNDS, "f4"), (vertex, PACKED, "u4")]
    wanted.append((harmonics, tuple(f"f_rest_{index}" for index in range(len(harmonics.properties))), "u1"))
    if COLOR_BOUNDS[0] in chunk.properties:
        wanted.append((chunk, COLOR_BOUNDS, "f4"))
    for element, names, code in wanted:
        missing = [name for name in names if element.properties.get(name) != code]
        if missing or not element.fixed:
            raise InputError(
                f"`{layout.path}`: element `{element.name}` lacks {', '.join(missing[:6]) or 'plain properties'}, or "
                "they have another type. Export the file again."
            )
    if len(harmonics.properties) not in REST_COUNTS or harmonics.count != vertex.count:
        raise InputError(
            f"`{layout.path}`: element `sh` has {harmonics.count} rows of {len(harmonics.properties)} coefficients; "
            f"{vertex.count} rows of 9, 24 or 45 are needed. Export the file again."
        )
    check_count(-(-vertex.count // CHUNK), 1.0, chunk.count, str(layout.path), "chunks of 256 Gaussians")
    return chunk, vertex, harmonics


def _rows(layout: PlyLayout, element: PlyElement, where: slice) -> np.ndarray:
    """Structured rows of an element, read from the file."""
    kind = element.row(layout.encoding)
    offset = element_offset(layout, element.name) + where.start * kind.itemsize
    rows = np.fromfile(layout.path, kind, where.stop - where.start, offset=offset)
    if len(rows) != where.stop - where.start:
        raise InputError(f"`{layout.path}` ended while it was read. Copy or export the file again.")
    return rows


def _read_bounds(layout: PlyLayout, chunk: PlyElement) -> np.ndarray:
    """Bounds `[C, 18]` of the chunks, in the order of `BOUNDS` and `COLOR_BOUNDS`."""
    bounds = np.empty((chunk.count, len(BOUNDS) + len(COLOR_BOUNDS)), np.float32)
    bounds[:, len(BOUNDS) :] = (0, 0, 0, 1, 1, 1)  # what older files, which name none, mean
    rows = _rows(layout, chunk, slice(0, chunk.count))
    for column, name in enumerate((*BOUNDS, *COLOR_BOUNDS)):
        if name in chunk.properties:
            bounds[:, column] = rows[name]
    return bounds


def _decode(rows: np.ndarray, bounds: np.ndarray, table: SplatTable, where: slice) -> None:
    """Unpack a block of rows that begins at a chunk's first row, column by column (numpy is slow along short axes)."""
    count = len(rows)
    chunks = -(-count // CHUNK)
    words = np.zeros((len(PACKED), chunks * CHUNK), np.uint32)
    for row, name in enumerate(PACKED):
        words[row, :count] = rows[name]
    position, rotation, scale, color = words

    def lerp(steps: np.ndarray, limit: int, column: int) -> np.ndarray:
        low, high = bounds[:chunks, column, None], bounds[:chunks, column + 3, None]
        fractions = steps.reshape(chunks, CHUNK) / np.float32(limit)
        return (low * (1 - fractions) + high * fractions).reshape(-1)[:count]

    with np.errstate(over="ignore", invalid="ignore"):  # `check_table` refuses what bounds without meaning give
        for axis, (shift, limit) in enumerate(((21, 2047), (11, 1023), (0, 2047))):
            table.means[where, axis] = lerp((position >> np.uint32(shift)) & np.uint32(limit), limit, axis)
            table.log_scales[where, axis] = lerp((scale >> np.uint32(shift)) & np.uint32(limit), limit, 6 + axis)
            shade = lerp((color >> np.uint32(24 - 8 * axis)) & np.uint32(255), 255, 12 + axis)
            table.sh[where, 0, axis] = sh_from_rgb(shade)
    table.opacity_logits[where] = logits_from_bytes(color[:count] & np.uint32(255))
    _unpack_rotations(rotation[:count], table.quats_wxyz[where])


def _unpack_rotations(packed: np.ndarray, quats: np.ndarray) -> None:
    """Fill `quats [N, 4]`: three small components, and the largest so that the length is 1."""
    a, b, c = (
        (((packed >> np.uint32(shift)) & np.uint32(1023)) / np.float32(1023) - np.float32(0.5)) * np.float32(2**0.5)
        for shift in (20, 10, 0)
    )
    largest = packed >> np.uint32(30)
    rest = np.sqrt(np.maximum(0, 1 - (a * a + b * b + c * c)))
    quats[:, 0] = np.where(largest == 0, rest, a)
    quats[:, 1] = np.where(largest == 0, a, np.where(largest == 1, rest, b))
    quats[:, 2] = np.where(largest <= 1, b, np.where(largest == 2, rest, c))
    quats[:, 3] = np.where(largest == 3, rest, c)


def _decode_harmonics(rows: np.ndarray, target: np.ndarray) -> None:
    """Fill `target [N, K - 1, 3]` from bytes: red's coefficients, then green's, then blue's."""
    names = tuple(f"f_rest_{index}" for index in range(len(rows.dtype.names or ())))
    plain = rows.dtype.names == names
    levels = rows.view(np.uint8).reshape(len(rows), -1) if plain else np.stack([rows[name] for name in names], axis=1)
    target[:] = np.take(_SH_LEVELS, levels).reshape(len(rows), 3, -1).transpose(0, 2, 1)


def _encode(part: SplatTable) -> tuple[np.ndarray, np.ndarray]:
    """Chunk bounds `[C, 18]` and packed rows `[N, 4]` of rows that begin at a chunk's first row."""
    starts = np.arange(0, len(part), CHUNK)
    chunks = np.empty((len(starts), 18), np.float32)
    fractions = []
    for column, values in ((0, part.means), (6, part.log_scales), (12, rgb_from_sh(part.sh[:, 0]))):
        low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        if column == 6:
            low, high = np.clip(low, -20, 20), np.clip(high, -20, 20)
        chunks[:, column : column + 3], chunks[:, column + 3 : column + 6] = low, high
        span = np.where(high > low, high - low, np.float32(1))
        low, span = (np.repeat(bound, CHUNK, axis=0)[: len(part)] for bound in (low, span))
        fractions.append(np.clip((values - low) / span, 0, 1))
    packed = np.empty((len(part), 4), np.uint32)
    packed[:, 0] = _join(fractions[0], _LIMITS, _SHIFTS)
    packed[:, 1] = _pack_rotations(part.quats_wxyz)
    packed[:, 2] = _join(fractions[1], _LIMITS, _SHIFTS)
    packed[:, 3] = _join(fractions[2], np.uint32(255), _COLOR_SHIFTS) | bytes_from_logits(part.opacity_logits)
    return chunks, packed


def _join(fractions: np.ndarray, limits: np.ndarray | np.uint32, shifts: np.ndarray) -> np.ndarray:
    """Round three fractions in 0..1 to their bits and put them into one word."""
    steps = (fractions * np.float32(limits) + np.float32(0.5)).astype(np.uint32) << shifts
    return steps[:, 0] | steps[:, 1] | steps[:, 2]


def _pack_rotations(quats: np.ndarray) -> np.ndarray:
    quats = quats / np.abs(quats).max(axis=1, keepdims=True)  # squares neither vanish nor overflow
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    largest = np.argmax(np.abs(quats), axis=1)
    sign = np.sign(np.take_along_axis(quats, largest[:, None], axis=1))
    small = np.take_along_axis(quats, _SMALL[largest], axis=1) * sign
    fractions = np.clip(small * np.float32(0.5**0.5) + np.float32(0.5), 0, 1)
    return (largest.astype(np.uint32) << np.uint32(30)) | _join(fractions, np.uint32(1023), _ROTATION_SHIFTS)

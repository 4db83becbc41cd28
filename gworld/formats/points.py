"""Point clouds in PLY files: positions and colours, nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gworld.errors import InputError
from gworld.files import atomic_write, check_count
from gworld.formats.ply_header import PlyElement, PlyLayout, element_offset, read_ply_layout

MAX_COORDINATE = 1e9
_COLORS = ("red", "green", "blue")


def read_points(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions [P,3] float64 and colours [P,3] uint8 ([0,3] where the file has none) of a PLY point cloud.

    Raises `InputError` when the file is no PLY, is cut off, has no `x y z`, or holds a value that is not finite.
    """
    layout = read_ply_layout(path)
    vertex = layout.element("vertex")
    if vertex is None or not vertex.fixed or not {"x", "y", "z"} <= set(vertex.properties):
        raise InputError(f"`{path}` has no vertices with x, y and z; a point cloud is needed. Choose another file.")
    rows = _ascii_rows(layout, vertex) if layout.encoding == "ascii" else _binary_rows(layout, vertex)
    points = np.stack([rows[name].astype(np.float64) for name in ("x", "y", "z")], axis=1)
    bad = ~(np.abs(points) <= MAX_COORDINATE).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"`{path}`: point {row} lies at {points[row].tolist()}; finite coordinates up to {MAX_COORDINATE:g} are "
            "needed. Export the file again."
        )
    return points, _colors(rows, vertex)


def write_points(path: str | Path, points: np.ndarray, colors: np.ndarray) -> None:
    """Write positions [P,3] (float64) and colours [P,3] uint8 (or [0,3] for none) as a binary PLY, atomically."""
    layout = [(name, "<f8") for name in ("x", "y", "z")]
    if len(colors):
        layout += [(name, "u1") for name in _COLORS]
    rows = np.empty(len(points), layout)
    for axis, name in enumerate(("x", "y", "z")):
        rows[name] = points[:, axis]
    for channel, name in enumerate(_COLORS if len(colors) else ()):
        rows[name] = colors[:, channel]
    kinds = {"<f8": "double", "u1": "uchar"}
    properties = "".join(f"property {kinds[kind]} {name}\n" for name, kind in layout)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{properties}end_header\n"
    with atomic_write(path) as stream:
        stream.write(header.encode("ascii"))
        stream.write(rows.tobytes())


def _binary_rows(layout: PlyLayout, vertex: PlyElement) -> np.ndarray:
    offset = element_offset(layout, "vertex")
    row = vertex.row(layout.encoding)
    check_count(vertex.count, row.itemsize, layout.size - offset, str(layout.path), "points")
    with open(layout.path, "rb") as stream:
        stream.seek(offset)
        rows = np.fromfile(stream, row, vertex.count)
    if len(rows) != vertex.count:
        raise InputError(f"`{layout.path}` ends after {len(rows)} of {vertex.count} points. Copy or export it again.")
    return rows


def _ascii_rows(layout: PlyLayout, vertex: PlyElement) -> np.ndarray:
    if layout.elements[0] is not vertex:
        raise InputError(f"`{layout.path}`: in a text PLY the vertices must come first. Export it as binary.")
    rows = np.empty(vertex.count, vertex.row("ascii"))
    names = tuple(vertex.properties)
    with open(layout.path, "rb") as stream:
        stream.seek(layout.offset)
        for index in range(vertex.count):
            words = stream.readline().split()
            try:
                rows[index] = tuple(
                    float(word) if vertex.properties[name].startswith("f") else int(word)
                    for name, word in zip(names, words, strict=True)
                )
            except (ValueError, OverflowError) as error:
                raise InputError(
                    f"`{layout.path}`: vertex {index} is not a row of {len(names)} numbers. Export the file again."
                ) from error
    return rows


def _colors(rows: np.ndarray, vertex: PlyElement) -> np.ndarray:
    kinds = [vertex.properties.get(name) for name in _COLORS]
    if kinds == ["u1"] * 3:
        return np.stack([rows[name] for name in _COLORS], axis=1)
    return np.zeros((0, 3), np.uint8)

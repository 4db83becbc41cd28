"""3D Gaussian splatting PLY: the layouts of INRIA, gsplat and nerfstudio, with gworld's links in one more property.

Rows are `x y z nx ny nz f_dc_0..2 f_rest_* opacity scale_0..2 rot_0..3 [link]` in any order; `f_rest` holds all
coefficients of red, then green, then blue. Flat Gaussians (2DGS, no `scale_2`) are read as very thin ones.
Source: Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", 2023, and its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from gworld.errors import InputError
from gworld.files import atomic_write
from gworld.formats.ply_header import (
    PlyElement,
    PlyLayout,
    element_offset,
    format_remarks,
    parse_remarks,
    read_ply_layout,
)
from gworld.formats.table import Axes, Link, SplatTable, check_table, empty_table
from gworld.scene.harmonics import sh_from_rgb

BLOCK_ROWS = 8192  # 2 MB of degree-3 rows: a block stays in the cache while its columns are taken apart
MAX_BLOCK_BYTES = 32 << 20
MAX_LINE_BYTES = 1 << 16
FLAT_LOG_SCALE = -13.815511  # ln 1e-6: thinner than anything a picture can show

XYZ = ("x", "y", "z")
NORMAL = ("nx", "ny", "nz")
DC = ("f_dc_0", "f_dc_1", "f_dc_2")
RGB = ("red", "green", "blue")
SCALE = ("scale_0", "scale_1", "scale_2")
ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")
REST_COUNTS = {0: 0, 9: 1, 24: 2, 45: 3}

Kind = Literal["gaussians", "gaussians-rgb", "compressed", "points"]
"""`gaussians-rgb` has `red green blue` in place of SH (nerfstudio's ply_color_mode rgb); `points` has no Gaussians."""


@dataclass(frozen=True)
class PlyHeader:
    """What the header of a splat PLY says: rows, their numpy type, where they start, and gworld's comments."""

    path: Path
    kind: Kind
    count: int
    dtype: np.dtype
    offset: int
    sh_degree: int
    ascii: bool = False
    axes: Axes | None = None
    metric: bool = False
    link_table: tuple[Link, ...] = (Link("world"),)


def read_ply_header(path: str | Path) -> PlyHeader:
    """Read and check the header of a splat PLY without touching its rows.

    Raises `InputError` for damaged headers, headers that promise more rows than the file holds, and PLY files that hold
    neither Gaussians nor points.
    """
    layout = read_ply_layout(path)
    vertex = layout.element("vertex")
    if vertex is None:
        raise InputError(f"`{layout.path}` has no element `vertex`; this is not a splat file. Choose another file.")
    if not vertex.fixed:
        raise InputError(
            f"`{layout.path}`: element `vertex` has list properties; plain ones are needed. Export it again."
        )
    kind = _kind_of(layout, vertex)
    remarks = parse_remarks(layout.comments)
    if kind.startswith("gaussians") and len(remarks.link_table) > 1 and "link" not in vertex.properties:
        raise InputError(
            f"`{layout.path}` names {len(remarks.link_table)} links but its rows have no `link` property; another "
            "program dropped it. Use the file as gworld wrote it."
        )
    is_ascii = layout.encoding == "ascii"
    return PlyHeader(
        path=layout.path,
        kind=kind,
        count=vertex.count,
        dtype=vertex.row(layout.encoding),
        offset=layout.offset if is_ascii else element_offset(layout, "vertex"),
        sh_degree=_degree_of(layout, vertex, kind),
        ascii=is_ascii,
        axes=remarks.axes,
        metric=remarks.metric,
        link_table=remarks.link_table,
    )


def read_ply(path: str | Path, *, check: bool = True) -> SplatTable:
    """Read a splat PLY; columns keep the bits of the file, quaternions are not normalised.

    With `check=False` rows that cannot be rendered are kept, for `table.bad_rows` to find.

    Raises `InputError` for files that are damaged, hold no Gaussians, or hold values that cannot be rendered.
    """
    header = _gaussian_header(path)
    table = _with_remarks(empty_table(header.count, header.sh_degree), header)
    start = 0
    for block in _blocks(header, BLOCK_ROWS):
        _take_apart(block, header, table, slice(start, start + len(block)))
        start += len(block)
    return check_table(table, str(header.path)) if check else table


def iter_ply(path: str | Path, rows: int = 65536) -> Iterator[SplatTable]:
    """Read a splat PLY in tables of up to `rows` rows, so that memory does not grow with the file.

    Raises `InputError` as `read_ply` does, when the bad block is reached.
    """
    header = _gaussian_header(path)
    start = 0
    for block in _blocks(header, rows):
        table = _with_remarks(empty_table(len(block), header.sh_degree), header)
        _take_apart(block, header, table, slice(0, len(block)))
        yield check_table(table, f"{header.path} (counting from row {start})" if start else str(header.path))
        start += len(block)


def write_ply(table: SplatTable, path: str | Path) -> None:
    """Write a binary little-endian splat PLY that any splat viewer opens.

    `link` is added only where there is more than one link. Raises `InputError` for values that cannot be rendered.
    """
    check_table(table, str(path))
    names = [
        *XYZ,
        *NORMAL,
        *DC,
        *(f"f_rest_{i}" for i in range(3 * (table.sh.shape[1] - 1))),
        "opacity",
        *SCALE,
        *ROTATION,
    ]
    linked = len(table.link_table) > 1
    lines = ["ply", "format binary_little_endian 1.0", *format_remarks(table), f"element vertex {len(table)}"]
    lines += [f"property float {name}" for name in names] + ["property int link"] * linked + ["end_header", ""]
    blocks = np.zeros((2, min(BLOCK_ROWS, len(table)), len(names) + linked), "<f4")  # normals stay zero
    with atomic_write(path) as stream, ThreadPoolExecutor(1) as writer:  # one block is written while the next is filled
        pending = writer.submit(stream.write, "\n".join(lines).encode("ascii"))
        for start in range(0, len(table), BLOCK_ROWS):
            rows = _fill(blocks[start // BLOCK_ROWS % 2], table.select(slice(start, start + BLOCK_ROWS)), linked)
            pending.result()
            pending = writer.submit(stream.write, rows.data)
        pending.result()


def _fill(block: np.ndarray, part: SplatTable, linked: bool) -> np.ndarray:
    """The rows of `part` in the usual order, in the memory of `block`."""
    rows = block[: len(part)]
    floats = rows[:, :-1] if linked else rows
    floats[:, 0:3] = part.means
    floats[:, 6:9] = part.sh[:, 0]
    floats[:, 9:-8] = part.sh[:, 1:].transpose(0, 2, 1).reshape(len(part), -1)
    floats[:, -8] = part.opacity_logits
    floats[:, -7:-4] = part.log_scales
    floats[:, -4:] = part.quats_wxyz
    if linked:
        rows.view("<i4")[:, -1] = part.links
    return rows


def _with_remarks(table: SplatTable, header: PlyHeader) -> SplatTable:
    columns = (table.means, table.quats_wxyz, table.log_scales, table.opacity_logits, table.sh, table.links)
    return SplatTable(*columns, axes=header.axes, metric=header.metric, link_table=header.link_table)


def _gaussian_header(path: str | Path) -> PlyHeader:
    header = read_ply_header(path)
    if header.kind == "points":
        raise InputError(
            f"`{header.path}` is a point cloud: it has no opacity, scales and rotations; Gaussians are needed. "
            "Fit Gaussians to its images with `gworld reconstruct`."
        )
    if header.kind == "compressed":
        raise InputError(
            f"`{header.path}` is a compressed PLY (packed in chunks of 256); it is read as `.compressed.ply`. "
            "Convert it with `gworld convert`."
        )
    return header


def _kind_of(layout: PlyLayout, vertex: PlyElement) -> Kind:
    have = vertex.properties
    if layout.element("chunk") is not None and "packed_position" in have:
        return "compressed"
    colors_only = DC[0] not in have and all(have.get(name) == "u1" for name in RGB)
    needed = (*XYZ, *(() if colors_only else DC), "opacity", *SCALE[:2], *ROTATION)
    missing = [name for name in needed if name not in have]
    if not missing and all(have[name] in ("f4", "f8") for name in needed):
        return "gaussians-rgb" if colors_only else "gaussians"
    if all(name in have for name in XYZ) and not any(name in have for name in ("opacity", *DC, *SCALE, *ROTATION)):
        return "points"
    raise InputError(
        f"`{layout.path}` lacks the properties {', '.join(missing or needed)} of a splat PLY, as floats. Export "
        "it again from the program that trained it."
    )


def _degree_of(layout: PlyLayout, vertex: PlyElement, kind: Kind) -> int:
    if kind == "compressed":
        coefficients = layout.element("sh")
        return REST_COUNTS.get(len(coefficients.properties), 0) if coefficients else 0
    rest = [name for name in vertex.properties if name.startswith("f_rest_")]
    if kind != "gaussians":
        return 0
    wanted = {f"f_rest_{index}" for index in range(len(rest))}
    if len(rest) not in REST_COUNTS or set(rest) != wanted:
        raise InputError(
            f"`{layout.path}` has {len(rest)} `f_rest` properties; f_rest_0 to 8, 23 or 44 (SH degree 1, 2, 3) or "
            "none are needed. Export the file again."
        )
    return REST_COUNTS[len(rest)]


def _blocks(header: PlyHeader, rows: int) -> Iterator[np.ndarray]:
    """Structured rows in blocks; each block's memory is used again for the next."""
    rows = max(1, min(rows, header.count, MAX_BLOCK_BYTES // header.dtype.itemsize))
    buffer = np.empty(rows, header.dtype)
    with open(header.path, "rb") as stream:
        stream.seek(header.offset)
        if header.ascii:
            _skip_lines(stream, header)
        for start in range(0, header.count, rows):
            block = buffer[: min(rows, header.count - start)]
            if header.ascii:
                _parse_rows(stream, block, start, header)
            elif stream.readinto(block.view(np.uint8).data) != block.nbytes:
                raise InputError(f"`{header.path}` ended while it was read. Copy or export the file again.")
            yield block


def _skip_lines(stream: IO[bytes], header: PlyHeader) -> None:
    for element in read_ply_layout(header.path).elements:
        if element.name == "vertex":
            return
        for _ in range(element.count):
            if not stream.readline(MAX_LINE_BYTES):
                raise InputError(f"`{header.path}` ends before its vertices. Copy or export the file again.")


def _parse_rows(stream: IO[bytes], block: np.ndarray, start: int, header: PlyHeader) -> None:
    names = header.dtype.names or ()
    values = np.empty((len(block), len(names)))
    for row in range(len(block)):
        words = stream.readline(MAX_LINE_BYTES).split()
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = []
        if len(numbers) != len(names):
            raise InputError(
                f"`{header.path}`: row {start + row} has {len(words)} words that are not {len(names)} numbers. Copy or "
                "export the file again."
            )
        values[row] = numbers
    with np.errstate(over="ignore", invalid="ignore"):  # `check_table` refuses what overflows
        for column, name in enumerate(names):
            block[name] = values[:, column]


def _take_apart(block: np.ndarray, header: PlyHeader, table: SplatTable, rows: slice) -> None:
    """Copy structured rows into the columns of `table`."""
    names = header.dtype.names or ()
    words = _as_words(block)

    def take(*names: str) -> np.ndarray:
        if words is not None:
            return words[:, _span([header.dtype.fields[name][1] // 4 for name in names])]  # type: ignore[index]  # named
        with np.errstate(over="ignore", invalid="ignore"):
            return np.stack([block[name].astype(np.float32) for name in names], axis=1)

    table.means[rows] = take(*XYZ)
    table.opacity_logits[rows] = take("opacity")[:, 0]
    flat = SCALE[2] not in names
    table.log_scales[rows] = take(*SCALE[: 3 - flat])[:, [0, 1, 1]] if flat else take(*SCALE)
    if flat:
        table.log_scales[rows, 2] = FLAT_LOG_SCALE
    table.quats_wxyz[rows] = take(*ROTATION)
    if header.kind == "gaussians-rgb":
        table.sh[rows, 0] = sh_from_rgb(np.stack([block[name] for name in RGB], axis=1) / np.float32(255))
    else:
        table.sh[rows, 0] = take(*DC)
    rest = table.sh.shape[1] - 1
    if rest:
        coefficients = take(*(f"f_rest_{index}" for index in range(3 * rest)))
        table.sh[rows, 1:] = coefficients.reshape(-1, 3, rest).transpose(0, 2, 1)
    if "link" in names:
        table.links[rows] = _link_indices(block["link"], header)


def _as_words(block: np.ndarray) -> np.ndarray | None:
    """Rows as a matrix of native float32 without a copy, where they hold nothing else (but links)."""
    fields: Mapping[str, tuple] = block.dtype.fields or {}
    usable = all(kind[0] == np.float32 or (name == "link" and kind[0].itemsize == 4) for name, kind in fields.items())
    return block.view(np.float32).reshape(len(block), -1) if usable else None


def _span(indices: list[int]) -> slice | list[int]:
    """A slice where the columns follow each other (then no copy is made)."""
    first, last = indices[0], indices[-1]
    return slice(first, last + 1) if indices == list(range(first, last + 1)) else indices


def _link_indices(values: np.ndarray, header: PlyHeader) -> np.ndarray:
    usable = np.isfinite(values) & (values >= 0) & (values < len(header.link_table))
    if not usable.all():
        row = int(np.argmin(usable))
        raise InputError(
            f"`{header.path}`: a Gaussian belongs to link {values[row]} but {len(header.link_table)} links are named "
            "in the header. Use the file as gworld wrote it."
        )
    return values.astype(np.int32)

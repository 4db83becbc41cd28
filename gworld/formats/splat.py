"""`.splat` files: 32 bytes per Gaussian and nothing else (antimatter15's web viewer, 2023).

A row is position (3 float32), scale (3 float32, linear), colour and opacity (4 bytes), rotation wxyz (4 bytes, 128 is
0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gworld.errors import InputError, UsageError
from gworld.files import atomic_write, existing_file
from gworld.formats.table import SplatTable, check_table, empty_table
from gworld.scene.harmonics import rgb_from_sh, sh_from_rgb

ROW = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])
BLOCK_ROWS = 65536
ROTATION_ZERO = (
    127.75  # some programs take byte b for b - 128 and round to it, others for b - 127.5 and cut: the middle
)
SMALLEST_SCALE = 1e-17  # a scale of zero is a flat Gaussian; its logarithm must stay finite


def read_splat(path: str | Path, *, check: bool = True) -> SplatTable:
    """Read a `.splat` file; it holds no spherical harmonics above degree 0 and says nothing of axes.

    With `check=False` rows that cannot be rendered are kept, for `table.bad_rows` to find.

    Raises `InputError` when the size is not a multiple of 32 or a value cannot be rendered.
    """
    file = existing_file(path)
    count, rest = divmod(file.stat().st_size, ROW.itemsize)
    if rest:
        raise InputError(
            f"`{file}` has {file.stat().st_size} bytes; a multiple of 32 is needed. It is cut off or no `.splat` file; "
            "copy or export it again."
        )
    table = empty_table(count)
    with open(file, "rb") as stream:
        for start in range(0, count, BLOCK_ROWS):
            data = stream.read(min(BLOCK_ROWS, count - start) * ROW.itemsize)
            if len(data) != min(BLOCK_ROWS, count - start) * ROW.itemsize:
                raise InputError(f"`{file}` ended while it was read. Copy or export the file again.")
            _decode(np.frombuffer(data, ROW), table, slice(start, start + BLOCK_ROWS))
    return check_table(table, str(file)) if check else table


def write_splat(table: SplatTable, path: str | Path) -> None:
    """Write a `.splat` file; colours and rotations are rounded to 8 bits, SH above degree 0 and axes are left out.

    Raises `UsageError` for tables with several links, which the format cannot hold.
    """
    check_table(table, str(path))
    refuse_links(table, path)
    with atomic_write(path) as stream:
        for start in range(0, len(table), BLOCK_ROWS):
            stream.write(_encode(table.select(slice(start, start + BLOCK_ROWS))).data)


def refuse_links(table: SplatTable, path: str | Path) -> None:
    """Raise `UsageError` where a format without links is to hold several of them."""
    if len(table.link_table) > 1:
        raise UsageError(
            f"`{path}` cannot hold the {len(table.link_table)} links of this world. Write `.ply` or `.glb` instead."
        )


def logits_from_bytes(values: np.ndarray) -> np.ndarray:
    """Opacity logits (float32) of 8-bit opacities, finite for 0 and 255 too; the inverse of `bytes_from_logits`."""
    return _LOGITS[values]


def bytes_from_logits(logits: np.ndarray) -> np.ndarray:
    """8-bit opacities of opacity logits."""
    with np.errstate(over="ignore"):
        return (255 / (1 + np.exp(-logits)) + 0.5).astype(np.uint8)


def _logit_table() -> np.ndarray:
    opacity = np.clip(np.arange(256), 0.25, 254.75) / 255
    return np.log(opacity / (1 - opacity)).astype(np.float32)


_LOGITS = _logit_table()


def _decode(rows: np.ndarray, table: SplatTable, where: slice) -> None:
    table.means[where] = rows["means"]
    with np.errstate(invalid="ignore"):  # a negative scale becomes NaN, which `check_table` refuses
        table.log_scales[where] = np.log(np.where(rows["scales"] == 0, np.float32(SMALLEST_SCALE), rows["scales"]))
    table.sh[where, 0] = sh_from_rgb(rows["rgba"][:, :3] * np.float32(1 / 255))
    table.opacity_logits[where] = logits_from_bytes(rows["rgba"][:, 3])
    quats = (rows["rotation"].astype(np.float32) - ROTATION_ZERO) / 128
    quats[(rows["rotation"] == 128).all(axis=1)] = (1, 0, 0, 0)  # four zeros hold no rotation
    table.quats_wxyz[where] = quats


def _encode(part: SplatTable) -> np.ndarray:
    rows = np.empty(len(part), ROW)
    rows["means"] = part.means
    rows["scales"] = np.exp(part.log_scales)
    rows["rgba"][:, :3] = np.clip(rgb_from_sh(part.sh[:, 0]) * 255 + 0.5, 0, 255)
    rows["rgba"][:, 3] = bytes_from_logits(part.opacity_logits)
    quats = part.quats_wxyz / np.abs(part.quats_wxyz).max(axis=1, keepdims=True)  # squares neither vanish nor overflow
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    rows["rotation"] = np.clip(quats * 128 + (ROTATION_ZERO + 0.5), 0, 255)
    return rows

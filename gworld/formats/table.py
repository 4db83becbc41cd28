"""The neutral form every splat file is read into and written from: plain numpy columns, no torch.

All columns follow `gworld.scene.gaussians.Gaussians`; the axes are those of the file where it states none.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from gworld.errors import InputError
from gworld.scene.links import IDENTITY_POSE, Link

__all__ = ["IDENTITY_POSE", "Axes", "Link", "SplatTable", "bad_rows", "check_table", "empty_table"]

Axes = Literal["RDF", "RUB", "RFU"]
"""Where x, y, z point: Right/Down/Forward (3DGS PLY by habit), Right/Up/Back (glTF, SPZ), Right/Forward/Up (gworld)."""

SH_COUNTS = {1: 0, 4: 1, 9: 2, 16: 3}
"""Coefficients per colour channel -> SH degree."""

# Beyond these a float32 renderer overflows: exp(log_scale) and exp(-logit) must stay finite and squarable.
MAX_ABS = {"means": 1e9, "quats_wxyz": 1e9, "log_scales": 40.0, "opacity_logits": 1e4, "sh": 1e6}


@dataclass(frozen=True)
class SplatTable:
    """Gaussians as numpy columns, float32 unless said, each row in the frame of its link.

    means [N,3], quats_wxyz [N,4] (any length > 0), log_scales [N,3] natural log, opacity_logits [N],
    sh [N,K,3] (K = 1, 4, 9 or 16; degree-0 term first), links [N] int32.
    `axes` is None where the file does not say; `metric` is True where lengths are known to be metres.
    """

    means: np.ndarray
    quats_wxyz: np.ndarray
    log_scales: np.ndarray
    opacity_logits: np.ndarray
    sh: np.ndarray
    links: np.ndarray
    axes: Axes | None = None
    metric: bool = False
    link_table: tuple[Link, ...] = field(default=(Link("world"),))

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return SH_COUNTS[self.sh.shape[1]]

    def select(self, rows: np.ndarray | slice) -> SplatTable:
        """The rows of a boolean mask, an index array or a slice."""
        columns = ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh", "links")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})


def empty_table(count: int, sh_degree: int = 0) -> SplatTable:
    """A table of `count` rows with uninitialised columns (links are zero), to be filled by a reader."""
    return SplatTable(
        means=np.empty((count, 3), np.float32),
        quats_wxyz=np.empty((count, 4), np.float32),
        log_scales=np.empty((count, 3), np.float32),
        opacity_logits=np.empty(count, np.float32),
        sh=np.empty((count, (sh_degree + 1) ** 2, 3), np.float32),
        links=np.zeros(count, np.int32),
    )


def check_table(table: SplatTable, source: str) -> SplatTable:
    """Return the table if every value can be rendered.

    Raises `InputError` naming `source`, the column and the first bad row when a value is not finite or is out of
    range, when a rotation has zero length, or when a link index is not in the link table.
    """
    for name, limit in MAX_ABS.items():
        _check_column(np.asarray(getattr(table, name)), name, limit, source)
    zero = _zero_rows(table.quats_wxyz)
    if zero.any():
        row = int(np.argmax(zero))
        raise InputError(
            f"`{source}`: the rotation of Gaussian {row} has zero length; a unit quaternion is needed. "
            "Export the file again, or remove that row."
        )
    if len(table) and (table.links.min() < 0 or table.links.max() >= len(table.link_table)):
        raise InputError(
            f"`{source}`: link indices span {table.links.min()}..{table.links.max()} but {len(table.link_table)} "
            "links are named. Export the file again with its links."
        )
    return table


def _check_column(values: np.ndarray, name: str, limit: float, source: str) -> None:
    if values.size == 0:
        return
    low, high = float(values.min()), float(values.max())
    if np.isfinite(low) and np.isfinite(high) and max(-low, high) <= limit:
        return
    bad = _rows_beyond(values, limit)
    row = int(np.argmax(bad))
    raise InputError(
        f"`{source}`: column {name} of Gaussian {row} is {values[row].ravel()[:4].tolist()}; finite values up to "
        f"{limit:g} are needed ({int(bad.sum())} of {len(values)} rows are bad). Export the file again, or repair it "
        "with `gworld convert --drop-bad`."
    )


def bad_rows(table: SplatTable) -> np.ndarray:
    """Boolean mask [N] of the rows that `check_table` would refuse for their values."""
    bad = _zero_rows(table.quats_wxyz)
    for name, limit in MAX_ABS.items():
        bad |= _rows_beyond(np.asarray(getattr(table, name)), limit)
    return bad


def _zero_rows(quats: np.ndarray) -> np.ndarray:
    mask = np.zeros(len(quats), bool)
    for rows in _blocks(len(quats)):
        w, x, y, z = np.abs(quats[rows].T)  # by columns: numpy is slow along a short axis
        mask[rows] = ~(np.maximum(np.maximum(w, x), np.maximum(y, z)) > 1e-18)
    return mask


def _rows_beyond(values: np.ndarray, limit: float) -> np.ndarray:
    mask = np.zeros(len(values), bool)
    for rows in _blocks(len(values)):
        part = values[rows]
        mask[rows] = ~(np.abs(part.reshape(len(part), -1)) <= limit).all(axis=1)
    return mask


def _blocks(count: int) -> list[slice]:
    """Slices of 65536 rows: what is computed on the way stays small beside the table."""
    return [slice(start, start + 65536) for start in range(0, count, 65536)]

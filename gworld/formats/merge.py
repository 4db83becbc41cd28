"""Merging pairs of Gaussians by moment matching: the numerics behind decimation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gworld.formats.morton import BITS, morton_codes
from gworld.formats.table import SplatTable


def morton_order(means: np.ndarray, links: np.ndarray, *, shift: int = 0) -> np.ndarray:
    """Row order [N] that sorts by link, then along a Z-order curve of 21 bits per axis; `shift` moves the curve's
    cells.
    """
    if len(means) == 0:
        return np.zeros(0, np.int64)
    points = means.astype(np.float64)
    low = points.min(axis=0)
    extent = max(float((points.max(axis=0) - low).max()), 1e-30)
    # A golden-ratio offset per round, so that a cell border never parts the same neighbours twice.
    offset = (shift * 0.6180339887498949) % 1.0
    cells = ((points - low) / extent + offset) * (2 ** (BITS - 1) - 1)
    code = morton_codes(cells)
    return np.lexsort((code, links))


def merge_pairs(table: SplatTable, at_most: int, *, first: int = 0) -> SplatTable:
    """Merge up to `at_most` of the adjacent row pairs (first, first+1), (first+2, ..) of one link, cheapest first.

    The cost of a pair is its visible mass times (squared distance over squared size + squared colour difference), so
    that small, near, similar and faint Gaussians go first. At most half of the pairs merge at once, to keep cheap ones
    available to better partners in later rounds.
    """
    left = np.arange(first, len(table) - 1, 2)
    left = left[table.links[left] == table.links[left + 1]]
    if len(left) == 0:
        return table
    mass = _mass(table)
    cost = _cost(table, mass, left, left + 1)
    take = min(at_most, max(1, len(left) // 2), len(left))
    chosen = np.sort(left[np.argpartition(cost, take - 1)[:take]])
    merged = _merge(table, mass, chosen, chosen + 1)
    keep = np.ones(len(table), bool)
    keep[chosen + 1] = False

    def joined(name: str) -> np.ndarray:
        column = np.array(getattr(table, name))
        column[chosen] = getattr(merged, name)
        return column[keep]

    return replace(
        table,
        means=joined("means"),
        quats_wxyz=joined("quats_wxyz"),
        log_scales=joined("log_scales"),
        opacity_logits=joined("opacity_logits"),
        sh=joined("sh"),
        links=table.links[keep],
    )


def covariances(table: SplatTable) -> np.ndarray:
    """Covariance matrices [N,3,3] float64 in square metres, in the frame of each row's link."""
    axes = rotations(table.quats_wxyz) * np.exp(table.log_scales.astype(np.float64))[:, None, :]
    return axes @ axes.transpose(0, 2, 1)


def rotations(quats_wxyz: np.ndarray) -> np.ndarray:
    """Rotation matrices [N,3,3] float64 of quaternions [N,4] of any length above zero."""
    quats = quats_wxyz.astype(np.float64)
    w, x, y, z = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).T
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return np.stack(rows, axis=-1).reshape(-1, 3, 3)


def _mass(table: SplatTable) -> np.ndarray:
    """Opacity times mean cross-section [N]: what a Gaussian contributes to a picture, up to a constant."""
    opacity = 1.0 / (1.0 + np.exp(-np.clip(table.opacity_logits.astype(np.float64), -60, 60)))
    return opacity * np.exp(np.clip(table.log_scales.sum(axis=1, dtype=np.float64), -300, 100) * (2.0 / 3.0))


def _cost(table: SplatTable, mass: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    size = np.exp(table.log_scales.max(axis=1).astype(np.float64))
    gap = ((table.means[left] - table.means[right]).astype(np.float64) ** 2).sum(axis=1)
    colour = ((table.sh[left, 0] - table.sh[right, 0]).astype(np.float64) ** 2).sum(axis=1)
    return (mass[left] + mass[right]) * (gap / (size[left] ** 2 + size[right] ** 2 + 1e-30) + colour)


def _merge(table: SplatTable, mass: np.ndarray, left: np.ndarray, right: np.ndarray) -> SplatTable:
    total = mass[left] + mass[right]
    weight = np.where(total > 0, mass[left] / np.where(total > 0, total, 1.0), 0.5)
    other = 1.0 - weight
    delta = (table.means[left] - table.means[right]).astype(np.float64)
    means = table.means[right] + weight[:, None] * delta
    spread = (weight * other)[:, None, None] * (delta[:, :, None] * delta[:, None, :])
    both = covariances(table.select(left)), covariances(table.select(right))
    covariance = weight[:, None, None] * both[0] + other[:, None, None] * both[1] + spread
    values, vectors = np.linalg.eigh(covariance)
    vectors[np.linalg.det(vectors) < 0, :, 0] *= -1.0
    log_scales = 0.5 * np.log(np.maximum(values, 1e-30))
    area = np.exp(log_scales.sum(axis=1) * (2.0 / 3.0))
    opacity = np.clip(total / np.maximum(area, 1e-300), 1e-4, 0.9999)
    sh = weight[:, None, None] * table.sh[left] + other[:, None, None] * table.sh[right]
    return SplatTable(
        means=means.astype(np.float32),
        quats_wxyz=_quats(vectors).astype(np.float32),
        log_scales=log_scales.astype(np.float32),
        opacity_logits=np.log(opacity / (1 - opacity)).astype(np.float32),
        sh=sh.astype(np.float32),
        links=table.links[left],
    )


def _quats(matrices: np.ndarray) -> np.ndarray:
    """Unit quaternions [N,4] wxyz of rotation matrices [N,3,3]."""
    from scipy.spatial.transform import Rotation

    return np.roll(Rotation.from_matrix(matrices).as_quat(), 1, axis=1)

"""Edits of whole splat tables: crop, drop floaters, decimate, change SH degree. Plain numpy.

Only decimation changes row order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gworld.errors import UsageError
from gworld.formats.merge import merge_pairs, morton_order
from gworld.formats.table import SplatTable


def opacities(table: SplatTable) -> np.ndarray:
    """Opacity [N] in 0..1 of the logits."""
    return 1.0 / (1.0 + np.exp(-np.clip(table.opacity_logits.astype(np.float64), -700, 700)))


def crop_box(table: SplatTable, low: Sequence[float], high: Sequence[float]) -> SplatTable:
    """Keep the Gaussians of the static world whose centre lies in a box (metres, world axes).

    Other links stay whole.
    """
    low_corner, high_corner = np.asarray(low, np.float32), np.asarray(high, np.float32)
    if low_corner.shape != (3,) or high_corner.shape != (3,) or not (low_corner < high_corner).all():
        raise UsageError(f"the crop box {list(low)} .. {list(high)} is empty; lower corner first, three numbers each.")
    inside = ((table.means >= low_corner) & (table.means <= high_corner)).all(axis=1)
    return table.select(inside | (table.links > 0))


def crop_sphere(table: SplatTable, center: Sequence[float], radius: float) -> SplatTable:
    """Keep the Gaussians of the static world whose centre lies in a ball (metres); other links stay whole."""
    if not radius > 0 or len(center) != 3:
        raise UsageError(f"the crop ball at {list(center)} with radius {radius} is empty; a radius above 0 is needed.")
    distance = np.linalg.norm(table.means - np.asarray(center, np.float32), axis=1)
    return table.select((distance <= radius) | (table.links > 0))


def drop_floaters(table: SplatTable, *, neighbours: int = 16, ratio: float = 4.0) -> SplatTable:
    """Remove Gaussians that nothing else is near, that cannot be seen, or that are larger than the scene.

    A Gaussian is a floater when its mean distance to its `neighbours` nearest in its link exceeds both `ratio` times
    that link's median of the same figure and three times its own largest standard deviation (so large background
    Gaussians that fill space stay), when its opacity is below 1/255, or when its largest standard deviation exceeds the
    diagonal of the box of the middle 98 % of centres.
    """
    from scipy.spatial import cKDTree

    keep = opacities(table) >= 1.0 / 255.0
    largest = np.exp(table.log_scales.max(axis=1)) if len(table) else np.zeros(0)
    for link in np.unique(table.links):
        rows = np.flatnonzero(table.links == link)
        if len(rows) <= neighbours + 1:
            continue
        points = table.means[rows].astype(np.float64)
        low, high = np.percentile(points, [1, 99], axis=0)
        distance = cKDTree(points).query(points, k=neighbours + 1, workers=-1)[0][:, 1:].mean(axis=1)
        lonely = (distance > ratio * np.median(distance)) & (distance > 3 * largest[rows])
        keep[rows] &= ~lonely & (largest[rows] <= np.linalg.norm(high - low) + 1e-12)
    return table.select(keep)


def decimate(table: SplatTable, count: int) -> SplatTable:
    """Reduce to at most `count` Gaussians by merging near, similar pairs, which keeps mass, mean and covariance.

    Invisible Gaussians (opacity below 1/255) go first. Neighbours are found along a Morton curve, shifted from round to
    round; in each round the cheapest pairs merge. Raises `UsageError` when `count` is below 1.
    """
    if count < 1:
        raise UsageError(f"decimation to {count} Gaussians was asked for; at least 1 is needed.")
    if len(table) > count:
        table = table.select(opacities(table) >= 1.0 / 255.0)
    stalled = 0
    for round_index in range(64):
        surplus = len(table) - count
        if surplus <= 0:
            break
        order = morton_order(table.means, table.links, shift=round_index)
        before = len(table)
        table = merge_pairs(table.select(order), surplus, first=round_index % 2)
        stalled = stalled + 1 if len(table) == before else 0
        if stalled == 2:  # every link is down to one Gaussian; only dropping is left
            break
    if len(table) > count:
        weight = opacities(table) * np.exp(table.log_scales.sum(axis=1, dtype=np.float64) * 2 / 3)
        table = table.select(np.sort(np.argsort(-weight, kind="stable")[:count]))
    return table


def with_sh_degree(table: SplatTable, degree: int) -> SplatTable:
    """Cut the spherical harmonics to `degree` (0 to 3), or pad them with zeros."""
    if degree not in (0, 1, 2, 3):
        raise UsageError(f"SH degree {degree} was asked for; 0, 1, 2 or 3 is needed.")
    wanted, have = (degree + 1) ** 2, table.sh.shape[1]
    if wanted <= have:
        return replace(table, sh=np.ascontiguousarray(table.sh[:, :wanted]))
    padding = np.zeros((len(table), wanted - have, 3), np.float32)
    return replace(table, sh=np.concatenate([table.sh, padding], axis=1))

"""Corners of dark squares to a twentieth of a pixel: lines through their edges, cut with each other."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

_ROUNDS = 3
_STEP = 0.25
_MIN_CONTRAST = 12.0


def refine_quads(grey: UInt8[ndarray, "H W"], quads: Float[ndarray, "N 4 2"]) -> Float[ndarray, "N 4 2"]:
    """Corners of dark quadrilaterals on light ground, in order around each; pixel centres lie at +0.5.

    Across each edge the middle of the rise from dark to light is taken at many places, a line is laid through them, and
    neighbouring lines are cut. A corner-wise search is worse by several times, because it takes the square's corner for
    a saddle. A quadrilateral whose edges cannot be followed stays as it was.
    """
    picture = grey.astype(np.float32)
    refined = quads.astype(np.float64).copy()
    for row, quad in enumerate(quads.astype(np.float64)):
        found: ndarray | None = quad
        for _ in range(_ROUNDS):
            found = _refine(picture, found) if found is not None else None
        shortest = np.linalg.norm(quad - np.roll(quad, -1, 0), axis=1).min()
        if found is not None and np.abs(found - quad).max() < max(2.0, 0.1 * shortest):
            refined[row] = found
    return refined


def _refine(picture: ndarray, quad: ndarray) -> ndarray | None:
    middle = quad.mean(0)
    lines = [_edge_line(picture, a, b, middle) for a, b in zip(quad, np.roll(quad, -1, 0), strict=True)]
    if any(line is None for line in lines):
        return None
    whole = np.array(lines)
    corners = np.cross(np.roll(whole, 1, 0), whole)
    if (np.abs(corners[:, 2]) < 1e-3).any():
        return None
    return corners[:, :2] / corners[:, 2:]


def _edge_line(picture: ndarray, a: ndarray, b: ndarray, middle: ndarray) -> ndarray | None:
    """The line (normal, offset) [3] along the edge from `a` to `b`, or None where too little of it can be seen."""
    from scipy.ndimage import map_coordinates

    length = float(np.linalg.norm(b - a))
    if length < 8:
        return None
    along = (b - a) / length
    outward = np.array([along[1], -along[0]])
    outward = outward if outward @ (a - middle) > 0 else -outward
    reach = float(np.clip(0.09 * length, 1.25, 3.0))  # a tag's black border is an eighth of its side or more
    offsets = np.arange(-reach, reach + 1e-6, _STEP)
    shares = np.linspace(0.12, 0.88, int(np.clip(0.76 * length, 6, 60)))
    at = a + shares[:, None] * (b - a)
    places = at[:, None] + offsets[None, :, None] * outward
    levels = map_coordinates(picture, [places[..., 1] - 0.5, places[..., 0] - 0.5], order=1, mode="nearest")
    rise = np.clip(np.diff(levels, axis=1), 0, None)
    seen = rise.sum(1) > _MIN_CONTRAST
    if seen.sum() < 5:
        return None
    between = (offsets[1:] + offsets[:-1]) / 2
    points = at[seen] + (rise[seen] @ between / rise[seen].sum(1))[:, None] * outward
    for _ in range(2):
        centre = points.mean(0)
        normal = np.linalg.svd(points - centre)[2][1]
        misses = np.abs((points - centre) @ normal)
        points = points[misses <= max(0.3, 2.5 * float(np.median(misses)))]
    return np.array([*normal, -normal @ points.mean(0)])
